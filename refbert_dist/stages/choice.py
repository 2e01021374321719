"""The weights that score best on dev, which TinyBERT's code keeps in place of the last."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from refbert_dist.config import Experiment
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import of_first
from refbert_dist.references.sources import Source
from refbert_dist.stages.answers import answers
from refbert_dist.stages.scores import scores

WORST = -1.0
"""Of every metric; the score of weights whose answers are not finite."""


class BestOnDev:
    """The leading metric on the task's dev rows, of a :class:`PredictionObjective`'s module as it is trained."""

    def __init__(self, exp: Experiment, references: Source | None, pad_id: int, device: torch.device) -> None:
        """``references`` are those of the dev rows."""
        assert exp.task is not None
        self.steps = exp.distill.evaluate_steps
        self.metric = task_spec(exp.task.name).metrics[0]
        self.batch_size = exp.evaluate.batch_size
        self.dev = TokenSet.open(tokens_artifact(exp, "dev"))
        self.references = references
        self.pad_id = pad_id
        self.device = device

    def score(self, engine: Any) -> float:
        """See :class:`refbert_dist.engine.loop.Choice`.

        Every process answers all rows, which at ZeRO stage 3 they must do together; the first one's figure counts.
        """
        assert self.dev.labels is not None

        @torch.no_grad()
        def forward(samples: np.ndarray) -> torch.Tensor:
            inputs = to_device(token_batch(self.dev, samples, self.pad_id), self.device)
            logits: torch.Tensor = engine(inputs, self.references.of(samples) if self.references else {})["logits"]
            return logits

        engine.eval()
        logits = np.concatenate(list(answers(forward, len(self.dev), self.batch_size)))
        engine.train()
        found = scores([self.metric], logits, self.dev.labels)[self.metric]
        return of_first(found if math.isfinite(found) else WORST)
