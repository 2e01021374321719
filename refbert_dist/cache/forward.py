"""The wrapped teacher on the rows of a cache."""

from __future__ import annotations

import numpy as np
import torch

from refbert_dist.cache.contract import Scope, teacher_spec
from refbert_dist.cache.plan import CachePlan
from refbert_dist.config import Experiment
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokens import TokenSet
from refbert_dist.engine.distributed import device_of, teacher_engine
from refbert_dist.engine.world import World
from refbert_dist.models.teacher import Teacher

LOGITS = "logits"
"""Name of the classifier's outputs beside the states ``h1``, ``h2`` and so on."""


def load_teacher(exp: Experiment, scope: Scope) -> Teacher:
    """The scope's teacher; for a task with its fine-tuned head."""
    if scope == "general":
        return Teacher.load(exp.teacher.model)
    assert exp.task is not None
    return Teacher.load(teacher_spec(exp, scope), num_labels=task_spec(exp.task.name).num_labels)


class TeacherForward:
    """The wrapped teacher on stored rows: name of a state -> ``[B, S, T]`` (logits ``[B, C]``) on the device."""

    def __init__(
        self,
        teacher: Teacher,
        tokens: TokenSet,
        plan: CachePlan,
        layers: tuple[int, ...],
        with_logits: bool,
        exp: Experiment,
        world: World,
    ) -> None:
        self.tokens = tokens
        self.plan = plan
        self.layers = layers
        self.with_logits = with_logits
        self.device = device_of(world)
        self.pad_id = teacher.pad_token_id
        self.engine = teacher_engine(teacher, exp.cache.precision, world)

    @torch.inference_mode()
    def __call__(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """States of rows (places in ``plan.rows``), padded."""
        batch = to_device(token_batch(self.tokens, self.plan.rows[rows], self.pad_id), self.device)
        outputs = self.engine(**batch, layers=self.layers, with_logits=self.with_logits)
        names = [*(f"h{layer}" for layer in self.layers), *([LOGITS] if self.with_logits else [])]
        return dict(zip(names, outputs, strict=True))


def kept(plan: CachePlan, rows: np.ndarray, states: torch.Tensor) -> torch.Tensor:
    """The stored positions of a padded batch ``[B, S, T]``, one row after the other: ``[N, T]``."""
    starts = np.arange(len(rows)) * states.shape[1]
    lengths = plan.stored[rows]
    places = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
    return states.flatten(0, 1).index_select(0, torch.from_numpy(places).to(states.device))
