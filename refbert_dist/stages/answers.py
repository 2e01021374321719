"""What a model answers on all rows of a token set, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tokens import TokenSet
from refbert_dist.engine.memory import explain_out_of_memory
from refbert_dist.models.teacher import Teacher

Forward = Callable[[np.ndarray], torch.Tensor]
"""From numbers of samples to logits ``[B, C]``."""


def teacher_forward(teacher: Teacher, tokens: TokenSet, device: torch.device) -> Forward:
    """The teacher's classifier on samples of ``tokens``."""

    @torch.inference_mode()
    def forward(samples: np.ndarray) -> torch.Tensor:
        return teacher.logits(**to_device(token_batch(tokens, samples, teacher.pad_token_id), device))

    return forward


def answers(forward: Forward, count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Logits ``[B, C]`` of samples 0 to ``count``, in batches."""
    advice = f"lower evaluate.batch_size (now {batch_size})"
    with explain_out_of_memory("evaluation", advice):
        for start in range(0, count, batch_size):
            yield forward(np.arange(start, min(start + batch_size, count))).float().cpu().numpy()
