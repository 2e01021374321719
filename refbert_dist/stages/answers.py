"""What a model answers on all rows of a token set, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from refbert_dist.artifacts import atomic_path, map_tensors, save_tensors
from refbert_dist.cache.models import is_saved, task_teacher
from refbert_dist.config import Experiment
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tokens import TokenSet
from refbert_dist.engine.distributed import of_first
from refbert_dist.engine.memory import explain_out_of_memory
from refbert_dist.engine.world import World
from refbert_dist.models.teacher import Teacher

Forward = Callable[[np.ndarray], torch.Tensor]
"""From numbers of samples to logits ``[B, C]``."""


def teacher_answers(exp: Experiment, teacher: Teacher, tokens: TokenSet, device: torch.device) -> np.ndarray:
    """The fine-tuned teacher's logits ``[N, C]`` on all rows of ``tokens``, the same on every process. A collective.

    They are kept beside the teacher, so that of all runs that share it only the first runs it here.
    """
    folder = task_teacher(exp)
    path = folder / f"answers-{tokens.fingerprint}.safetensors"
    if of_first(path.exists()):
        return map_tensors(path)["logits"]
    forward = teacher_forward(teacher, tokens, device)
    # Every process computes it, so that none waits; the first one's figures count, so that all decide the same.
    logits: np.ndarray = of_first(np.concatenate(list(answers(forward, len(tokens), exp.evaluate.batch_size))))
    if is_saved(folder) and World.from_environment().rank == 0:
        with atomic_path(path) as temporary:
            save_tensors({"logits": logits})(temporary)
    return logits


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
