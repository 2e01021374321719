"""How alike neighbours are. Read it for training rows and held-out rows side by side: they should look the same.

Sums are kept with each shard of neighbours, while its texts are at hand, and put together when all shards are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from refbert_dist.references.guards import TextPair, word_set
from refbert_dist.references.search import Found, Queries

OVERLAP_QUERIES = 100_000
"""Words are compared for at most so many queries, evenly spread."""
RANDOM_PAIRS = 20
"""Random pool rows each query is compared with for the label agreement of random pairs."""


def compared(numbers: range, total: int) -> np.ndarray:
    """Which queries of a stretch of all ``total`` have their words compared: places in the stretch, int64."""
    step = -(-total // OVERLAP_QUERIES)
    return np.arange(-numbers.start % step, len(numbers), step)


def similarity_sums(found: Found, queries: Queries, pool: Sequence[TextPair], places: np.ndarray) -> dict[str, float]:
    """What :func:`similarity` adds up; words are compared for the queries at ``places``.

    A random pair is a query and any row of the pool but itself.
    """
    first = found.ids[:, 0]
    some = first >= 0
    nearest = places[some[places]]
    drawn = np.random.default_rng(len(pool)).integers(len(pool), size=len(places))
    drawn = (drawn + (drawn == queries.rows[places])) % len(pool)
    return {
        "with_all": int((found.ids >= 0).all(axis=1).sum()),
        "with_any": int(some.sum()),
        "first_scores": float(found.scores[some, 0].sum(dtype=np.float64)),
        "nearest_pairs": len(nearest),
        "nearest_overlaps": _overlaps(queries.texts, nearest, pool, first[nearest]),
        "random_pairs": len(places),
        "random_overlaps": _overlaps(queries.texts, places, pool, drawn),
    }


def similarity(sums: Iterable[Mapping[str, float]], total: int) -> dict[str, float]:
    """Shares of the queries with all k and with any neighbour, and means over the first neighbours.

    The overlap is the share of words that query and neighbour have in common (Jaccard); unlike the score it does not
    grow with the query's length. ``overlap_sample`` is the number of queries behind its means.
    """
    added: dict[str, float] = {}
    for item in sums:
        for name, value in item.items():
            added[name] = added.get(name, 0) + value
    return {
        "share_with_all": added["with_all"] / total,
        "share_with_any": added["with_any"] / total,
        "mean_first_score": added["first_scores"] / max(1, added["with_any"]),
        "mean_first_overlap": added["nearest_overlaps"] / max(1, added["nearest_pairs"]),
        "mean_random_overlap": added["random_overlaps"] / max(1, added["random_pairs"]),
        "overlap_sample": added["random_pairs"],
    }


def label_agreement(
    first: np.ndarray, query_labels: np.ndarray, pool_labels: np.ndarray, regression: bool
) -> dict[str, Any]:
    """Labels of each query and its first neighbour ``first [n]``, beside random pairs of query and pool row.

    Classification: share of equal labels. Regression: mean absolute difference.
    """
    some = np.flatnonzero(first >= 0)
    drawn = np.random.default_rng(0).integers(len(pool_labels), size=(len(query_labels), RANDOM_PAIRS))

    def agreement(labels: np.ndarray, others: np.ndarray) -> float:
        return float(np.abs(labels - others).mean() if regression else (labels == others).mean())

    return {
        "measure": "mean absolute difference" if regression else "share of equal labels",
        "nearest": agreement(query_labels[some], pool_labels[first[some]]) if len(some) else None,
        "random": agreement(query_labels[:, None], pool_labels[drawn]),
    }


def _overlaps(texts: Sequence[TextPair], places: np.ndarray, pool: Sequence[TextPair], rows: np.ndarray) -> float:
    pairs = zip(places.tolist(), rows.tolist(), strict=True)
    return sum(jaccard(word_set(texts[place]), word_set(pool[row])) for place, row in pairs)


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Share of the words of both that are words of each."""
    return len(first & second) / (len(first | second) or 1)
