"""Differences and ratios of scores, with the intervals within which resamples put them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from refbert_dist.table.answers import Member, TaskScores
from refbert_dist.table.statistics import interval, seed_shares

Verdict = Literal["helps", "hurts", "no difference shown", "not known"]


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval within which resamples put it."""

    value: float
    low: float | None = None
    """None: answers are missing, so that nothing could be drawn anew."""
    high: float | None = None
    points: tuple[float, ...] = field(default=(), repr=False)
    """Of each seed, where it is of one task."""

    @property
    def verdict(self) -> Verdict:
        """Of a difference: which way it goes, if its interval leaves out 0."""
        if self.low is None or self.high is None:
            return "not known"
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "no difference shown"


@dataclass(frozen=True)
class Pair:
    """Scores of two systems on a task, seed by seed, as they are and with rows and seeds drawn anew."""

    first: np.ndarray
    """``[n]``, of each seed."""
    second: np.ndarray
    """``[n]``."""
    drawn: tuple[np.ndarray, np.ndarray] | None
    """Means over drawn rows and seeds, ``[R]`` of each; None where answers are missing."""

    @classmethod
    def of(cls, scores: TaskScores, first: Sequence[Member], second: Sequence[Member]) -> Pair | None:
        """Of members that belong together one by one; None where there are none."""
        if not first or not second:
            return None
        a, b = (np.array([scores.by_member[member] for member in each]) for each in (first, second))
        if not all(member in scores.drawn for member in (*first, *second)):
            return cls(a, b, None)
        resamples = len(scores.drawn[first[0]])
        shares = seed_shares(len(first), resamples, scores.draw)

        def means(members: Sequence[Member]) -> np.ndarray:
            found: np.ndarray = np.einsum("rn,nr->r", shares, np.stack([scores.drawn[member] for member in members]))
            return found

        return cls(a, b, (means(first), means(second)))


def estimate(of: Callable[[np.ndarray, np.ndarray], np.ndarray], pairs: Sequence[Pair]) -> Estimate:
    """A function of two scores, each the mean over the tasks of ``pairs``, which are drawn independently."""
    first = np.mean([pair.first.mean() for pair in pairs])
    second = np.mean([pair.second.mean() for pair in pairs])
    drawn = [pair.drawn for pair in pairs if pair.drawn is not None]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of(first, second))
        points = tuple(map(float, of(pairs[0].first, pairs[0].second))) if len(pairs) == 1 else ()
        if len(drawn) < len(pairs):
            return Estimate(value, points=points)
        values = of(np.mean([a for a, _ in drawn], axis=0), np.mean([b for _, b in drawn], axis=0))
    # A ratio has no value where nothing was scored.
    known = values[np.isfinite(values)]
    low, high = interval(known) if len(known) else (None, None)
    return Estimate(value, low, high, points)
