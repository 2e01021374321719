"""Which samples a cache holds, which make up a shard, and in which batches they go through the teacher.

All of it depends on the token set and the experiment alone, never on the number of processes, so a shard has the same
bytes whoever writes it, and a reader knows where a sample lies before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refbert_dist.artifacts import shard_name
from refbert_dist.cache.codec import SAMPLE_TOKENS
from refbert_dist.errors import UserError

PLAN_VERSION = 2
"""Raised when batches are formed differently, which may change the last bits of what is computed."""
CODEBOOK = "codebook"
"""Name of the shard that holds what a trained codec learned."""


@dataclass(frozen=True)
class ShardPlan:
    """Stored rows ``start`` to ``stop`` (exclusive) of one shard."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Under which the shard is committed."""
        return shard_name(self.number)


class CachePlan:
    """The stored rows of a token set and their shards."""

    def __init__(self, rows: np.ndarray, lengths: np.ndarray, cut: int | None, shard_tokens: int) -> None:
        """``rows``: sample ids, int64, sorted; ``lengths``: tokens of each row; ``cut``: tokens stored at most."""
        if (lengths < 1).any():
            raise UserError(
                f"sample {rows[np.flatnonzero(lengths < 1)[0]]} has no tokens, so it has no states; "
                "raise corpus.min_length, or remove the empty row"
            )
        self.rows = rows
        self.lengths = lengths
        """Tokens of each stored row that the teacher sees, int32 ``[N]``."""
        self.stored = lengths if cut is None else np.minimum(lengths, cut)
        """Tokens of each stored row whose states are kept, int32 ``[N]``."""
        self.shards = _cut(self.stored, shard_tokens)
        self._starts = np.array([plan.start for plan in self.shards], np.int64)

    @property
    def names(self) -> list[str]:
        """Names of the shards, in order."""
        return [plan.name for plan in self.shards]

    def find(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and place within it of each sample id; UserError for one that is not stored."""
        places = np.searchsorted(self.rows, samples)
        known = places < len(self.rows)
        known[known] = self.rows[places[known]] == samples[known]
        if not known.all():
            raise UserError(
                f"sample {samples[~known][0]} is not in the teacher cache, which holds {len(self.rows)} samples from "
                f"{self.rows[0]} to {self.rows[-1]}: with distill.targets=online only those of the pool; set "
                "distill.targets=cache to store all"
            )
        shards = np.searchsorted(self._starts, places, side="right") - 1
        return shards, places - self._starts[shards]

    def batches(self, shard: ShardPlan, batch_tokens: int) -> Iterator[np.ndarray]:
        """Stored rows (places in ``rows``) of one shard in the batches in which the teacher sees them."""
        return batches_by_length(self.lengths, np.arange(shard.start, shard.stop), batch_tokens)

    def training_rows(self) -> np.ndarray:
        """Stored rows from which a trained codec learns: evenly spread, about ``SAMPLE_TOKENS`` tokens."""
        tokens = int(self.stored.sum())
        count = max(1, min(len(self.rows), round(len(self.rows) * SAMPLE_TOKENS / max(1, tokens))))
        return np.linspace(0, len(self.rows) - 1, count).round().astype(np.int64)


def _cut(lengths: np.ndarray, shard_tokens: int) -> list[ShardPlan]:
    """Cut rows, in order, into shards of about ``shard_tokens`` tokens."""
    plans: list[ShardPlan] = []
    ends = np.cumsum(lengths, dtype=np.int64)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + shard_tokens, side="right")))
        plans.append(ShardPlan(len(plans), start, stop))
        start = stop
    return plans


def batches_by_length(lengths: np.ndarray, rows: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Batches of rows of like length, each at most ``batch_tokens`` tokens with padding (at least one row)."""
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    batch: list[int] = []
    for row in rows.tolist():
        # Sorted by length: the newest row is the longest, so it sets the padded size of all.
        if batch and (len(batch) + 1) * int(lengths[row]) > batch_tokens:
            yield np.array(batch)
            batch = []
        batch.append(row)
    if batch:
        yield np.array(batch)
