"""Scores under resampling: pure functions of predictions, gold labels and a seed.

Two things make the score of a system what it is by chance: the rows of dev, and the seed of its training. Both are
drawn anew, independently of each other (the pigeonhole bootstrap of crossed factors, Owen 2007, arXiv 0712.1111):

- of ``N`` rows ``N`` are drawn with replacement, *the same ones for all systems and seeds*;
- of ``n`` seeds ``n - 1`` are drawn with replacement, the same ones for both systems of a pair. With ``n`` draws the
  spread of a mean of few seeds would come out too small, by the factor (n - 1) / n of its variance (Efron 1982). A
  single seed is no sample: only rows are drawn then.

Metrics are computed anew on the drawn rows, from how often each was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
"""Of intervals."""
CHUNK_VALUES = 1 << 18
"""Counts of drawn rows that are at hand at a time: 2 MB, which caches hold."""

Resampled = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From predictions ``[K, N]``, gold ``[N]`` and how often each row was drawn ``[R, N]`` to a metric ``[R, K]``."""


def row_counts(rows: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``rows`` rows is drawn, float64 ``[resamples, rows]``."""
    drawn = rng.integers(0, rows, (resamples, rows)) + rows * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)


def seed_shares(seeds: int, resamples: int, seed: Sequence[int]) -> np.ndarray:
    """Weight of each seed in the mean of each resample, float64 ``[resamples, seeds]``; rows sum to 1.

    Depends on ``seed`` and the number of seeds alone: systems of the same seeds are drawn alike.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    rng = np.random.default_rng([*seed, seeds])
    return rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1)


def resampled_scores(
    metrics: Sequence[str], predictions: np.ndarray, gold: np.ndarray, resamples: int, seed: Sequence[int]
) -> np.ndarray:
    """Mean of a task's metrics for each of K predictions on drawn rows, float64 ``[resamples, K]``.

    Args:
        metrics: names, as of :data:`refbert_dist.stages.scores.METRICS`.
        predictions: class numbers or scores ``[K, N]``.
        gold: labels ``[N]``.
        resamples: how often rows are drawn.
        seed: of the draws, which are the same for all K.
    """
    rng, chunk = np.random.default_rng(seed), max(1, CHUNK_VALUES // len(gold))
    found = []
    for start in range(0, resamples, chunk):
        counts = row_counts(len(gold), min(chunk, resamples - start), rng)
        found.append(np.mean([RESAMPLED[metric](predictions, gold, counts) for metric in metrics], axis=0))
    return np.concatenate(found)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Percentiles of resamples ``[R]`` between which ``LEVEL`` of them lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# -- metrics on drawn rows ---------------------------------------------------------------------------------------------


def _accuracy(predictions: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    right: np.ndarray = counts @ (predictions == gold).T.astype(np.float64)
    right /= counts.sum(axis=1, keepdims=True)
    return right


def _confusion(predictions: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Draws that are truly positive ``[R, K]``, predicted positive ``[R, K]``, gold positive ``[R, 1]``; draws."""
    positive = (predictions == 1).astype(np.float64)
    both, predicted = counts @ (positive * (gold == 1)).T, counts @ positive.T
    return both, predicted, counts @ (gold == 1).astype(np.float64)[:, None], counts.sum(axis=1, keepdims=True)


def _f1(predictions: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    both, predicted, true, _ = _confusion(predictions, gold, counts)
    return _ratio(2 * both, predicted + true)


def _mcc(predictions: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    both, predicted, true, drawn = _confusion(predictions, gold, counts)
    spread = predicted * (drawn - predicted) * true * (drawn - true)
    return _ratio(both * drawn - predicted * true, np.sqrt(spread))


def _pearson(predictions: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    # Centred beforehand, or the differences of large sums would lose digits.
    x, y = (
        (predictions - predictions.mean(axis=1, keepdims=True)).astype(np.float64),
        gold - gold.mean(dtype=np.float64),
    )
    drawn = counts.sum(axis=1, keepdims=True)
    mean_x, mean_y = counts @ x.T / drawn, (counts @ y)[:, None] / drawn
    both = counts @ (x * y).T / drawn - mean_x * mean_y
    spread_x, spread_y = counts @ (x * x).T / drawn - mean_x**2, (counts @ (y * y))[:, None] / drawn - mean_y**2
    return _ratio(both, np.sqrt(np.maximum(spread_x * spread_y, 0.0)))


def _spearman(predictions: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's of ranks among the drawn rows, ties at their mean: the k-th value has as rank the draws below it, and
    half of its own and one.

    In the order of a prediction's values its ranks are sums from the left, and so of whole rows of ``[N, R]`` each.
    """
    drawn = counts.T.copy()
    order, starts, group = _ties(gold)
    ranks, spread = _centred_ranks(drawn[order], starts)
    true = np.empty_like(drawn)
    true[order] = ranks[group]
    true *= drawn
    found = []
    for values in predictions:
        order, starts, _ = _ties(values)
        ranks, own_spread = _centred_ranks(drawn[order], starts)
        both = np.einsum("gr,gr->r", ranks, np.add.reduceat(true[order], starts, axis=0))
        found.append(_ratio(both, np.sqrt(own_spread * spread)))
    return np.stack(found, axis=1)


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of values ``[N]``: their order, where in it each different one begins ``[G]``, and in order whose rank it has."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    return order, starts, group


def _centred_ranks(drawn: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each different value, less the mean of all draws, ``[G, R]``; the sum of its squares over draws ``[R]``.

    ``drawn``: how often each row was drawn, by value, ``[N, R]``.
    """
    own = np.add.reduceat(drawn, starts, axis=0)
    ranks = np.cumsum(own, axis=0) - own / 2 - len(drawn) / 2
    return ranks, np.einsum("gr,gr,gr->r", own, ranks, ranks)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """0 where nothing varies, as the scores of whole data sets have it."""
    ratio: np.ndarray = np.divide(above, below, out=np.zeros_like(above), where=below > 1e-12)
    return ratio


RESAMPLED: dict[str, Resampled] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
}
