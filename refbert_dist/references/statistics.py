"""How alike neighbours are. Read it for training rows and held-out rows side by side: they should look the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refbert_dist.references.guards import TextPair, word_set

RANDOM_PAIRS = 20
"""Random pool rows each query is compared with for the label agreement of random pairs."""


def similarity(
    ids: np.ndarray, scores: np.ndarray, queries: Sequence[TextPair], pool: Sequence[TextPair]
) -> dict[str, float]:
    """Shares of the queries with all k and with any neighbour, and means over the first neighbours.

    ``ids`` and ``scores`` are ``[n, k]``. The overlap is the share of words that query and neighbour have in common
    (Jaccard); unlike the score it does not grow with the query's length.
    """
    first = ids[:, 0]
    some = np.flatnonzero(first >= 0)
    overlaps = [_jaccard(word_set(queries[query]), word_set(pool[first[query]])) for query in some.tolist()]
    return {
        "share_with_all": float((ids >= 0).all(axis=1).mean()),
        "share_with_any": len(some) / len(ids),
        "mean_first_score": float(scores[some, 0].mean()) if len(some) else 0.0,
        "mean_first_overlap": float(np.mean(overlaps)) if overlaps else 0.0,
    }


def label_agreement(
    ids: np.ndarray, query_labels: np.ndarray, pool_labels: np.ndarray, regression: bool, seed: int
) -> dict[str, Any]:
    """Labels of each query and its first neighbour ``ids[:, 0]``, beside random pairs of query and pool row.

    Classification: share of equal labels. Regression: mean absolute difference.
    """
    some = np.flatnonzero(ids[:, 0] >= 0)
    drawn = np.random.default_rng(seed).integers(len(pool_labels), size=(len(query_labels), RANDOM_PAIRS))

    def agreement(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.abs(first - second).mean() if regression else (first == second).mean())

    return {
        "measure": "mean absolute difference" if regression else "share of equal labels",
        "nearest": agreement(query_labels[some], pool_labels[ids[some, 0]]) if len(some) else None,
        "random": agreement(query_labels[:, None], pool_labels[drawn]),
    }


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / (len(first | second) or 1)
