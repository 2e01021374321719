"""Fine-tuning the teacher on a labelled task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tokens import TokenSet
from refbert_dist.losses import cross_entropy, mse_regression
from refbert_dist.models.teacher import Teacher


class FinetuneModule(torch.nn.Module):
    """A teacher with a head; forward returns the summed loss against gold labels."""

    def __init__(self, teacher: Teacher, num_labels: int) -> None:
        super().__init__()
        self.teacher = teacher
        self.num_labels = num_labels

    def forward(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """``labels [B]``: class numbers, or scores where the task is regression."""
        logits = self.teacher.logits(**inputs)
        if self.num_labels == 1:
            return {"prediction": mse_regression(logits, labels)}
        return {"prediction": cross_entropy(logits, labels.long())}


class FinetuneObjective:
    """Cross-entropy, or squared error for regression, over the task's training rows."""

    def __init__(self, teacher: Teacher, tokens: TokenSet, num_labels: int, rows: np.ndarray | None = None) -> None:
        """``rows`` int64 ``[n]`` are those to train on; None: all."""
        self.module = FinetuneModule(teacher, num_labels)
        self.weights = self.weights_at(0.0)
        self.tokens = tokens
        self.rows = np.arange(len(tokens)) if rows is None else rows
        self.lengths = tokens.lengths[self.rows]
        self.pad_id = teacher.pad_token_id

    def batch(self, samples: np.ndarray, device: torch.device) -> dict[str, Any]:
        """Inputs and gold labels."""
        assert self.tokens.labels is not None
        rows = self.rows[samples]
        return {
            "inputs": to_device(token_batch(self.tokens, rows, self.pad_id), device),
            "labels": torch.from_numpy(self.tokens.labels[rows]).to(device),
        }

    def weights_at(self, fraction: float) -> dict[str, float]:
        """The one term counts in full at any time."""
        return {"prediction": 1.0}

    def denominators(self, samples: np.ndarray) -> dict[str, float]:
        """The loss is a mean over samples."""
        return {"prediction": float(len(samples))}
