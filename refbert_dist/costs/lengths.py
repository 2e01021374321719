"""How long the samples of a token set are, as far as costs depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Lengths:
    """Shares of samples by length, and how many samples there are."""

    samples: int
    shares: np.ndarray
    """Share of the samples that have 0, 1, 2, ... tokens, float64 ``[longest + 1]``; sums to 1."""

    @classmethod
    def counted(cls, counts: Sequence[float] | np.ndarray) -> Lengths:
        """From how many samples have 0, 1, 2, ... tokens (at least one sample)."""
        found = np.asarray(counts, np.float64)
        return cls(round(float(found.sum())), found / found.sum())

    @classmethod
    def of(cls, lengths: Sequence[int] | np.ndarray) -> Lengths:
        """From the length of each sample."""
        return cls.counted(np.bincount(np.asarray(lengths, np.int64)))

    def scaled(self, samples: int) -> Lengths:
        """Another number of samples of the same kind."""
        return Lengths(samples, self.shares)

    def cut(self, longest: int) -> Lengths:
        """The same samples, no longer than ``longest``."""
        shares = self.shares[: longest + 1].copy()
        shares[-1] += self.shares[longest + 1 :].sum()
        return Lengths(self.samples, shares)

    def filled(self, length: int) -> Lengths:
        """The same samples, all padded to ``length``."""
        return Lengths(self.samples, np.eye(length + 1)[length])

    @cached_property
    def mean(self) -> float:
        """Tokens of a sample, on average."""
        return float(self.shares @ np.arange(len(self.shares)))

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return round(self.samples * self.mean)

    @cached_property
    def seen(self) -> float:
        """Tokens that a token attends to, on average: the mean of squared lengths over the mean length."""
        lengths = np.arange(len(self.shares), dtype=np.float64)
        return float(self.shares @ lengths**2) / self.mean

    def padded(self, batch: int, micro: int) -> list[int]:
        """Length to which each micro-batch of a batch is padded: drawn at random, sorted, cut into pieces of ``micro``.

        The k-th shortest of n is taken to be the quantile k / (n + 1).
        """
        below = np.cumsum(self.shares)
        ends = [min(start + micro, batch) for start in range(0, batch, micro)]
        places = np.searchsorted(below, np.array(ends) / (batch + 1))
        found: list[int] = np.minimum(places, len(self.shares) - 1).tolist()
        return found
