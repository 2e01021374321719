"""Which samples make up a shard and in which batches they go through the teacher.

Both depend on the lengths alone, never on the number of processes, so a shard has the same bytes whoever writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PLAN_VERSION = 1
"""Raised when batches are formed differently, which may change the last bits of what is computed."""


@dataclass(frozen=True)
class ShardPlan:
    """Samples ``start`` to ``stop`` (exclusive) of one shard."""

    shard: int
    start: int
    stop: int


def plan_shards(lengths: np.ndarray, shard_tokens: int) -> list[ShardPlan]:
    """Cut the samples, in order, into shards of about ``shard_tokens`` tokens."""
    plans: list[ShardPlan] = []
    start, tokens = 0, 0
    for index, length in enumerate(lengths.tolist()):
        if tokens and tokens + length > shard_tokens:
            plans.append(ShardPlan(len(plans), start, index))
            start, tokens = index, 0
        tokens += length
    if start < len(lengths):
        plans.append(ShardPlan(len(plans), start, len(lengths)))
    return plans


def plan_batches(lengths: np.ndarray, plan: ShardPlan, batch_tokens: int) -> Iterator[np.ndarray]:
    """Batches of samples of like length, each at most ``batch_tokens`` tokens with padding (at least one sample)."""
    samples = np.arange(plan.start, plan.stop)
    samples = samples[np.argsort(lengths[samples], kind="stable")]
    batch: list[int] = []
    for sample in samples.tolist():
        # Sorted by length: the newest sample is the longest, so it sets the padded size of all.
        if batch and (len(batch) + 1) * int(lengths[sample]) > batch_tokens:
            yield np.array(batch)
            batch = []
        batch.append(sample)
    if batch:
        yield np.array(batch)
