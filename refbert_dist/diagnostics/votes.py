"""What the labels of references could add to an answer: their vote mixed into it, which takes no training."""

from __future__ import annotations

from typing import Any

import numpy as np

from refbert_dist.data.tasks import TaskSpec
from refbert_dist.stages.scores import scores

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Of the vote in a mixed answer."""


def mixed_with_votes(logits: np.ndarray, votes: np.ndarray, labels: np.ndarray, spec: TaskSpec) -> dict[str, Any]:
    """The task's leading metric when a share of each answer is the vote of the input's references.

    Args:
        logits: a student's, ``[N, C]``.
        votes: see :func:`refbert_dist.references.neighbour_vote.neighbour_vote`, ``[N, C]``.
        labels: gold, ``[N]``.
        spec: of the task.

    Returns:
        ``scores``, of each of ``SHARES`` on all rows, the best of which is too good, being the best of several; and
        ``chosen``, an honest one: each half of the rows with the share that is best on the other half.
    """
    own, voted = (logits, votes) if spec.is_regression else (_softmax(logits), votes / votes.sum(axis=1, keepdims=True))
    mixed = [(1 - share) * own + share * voted for share in SHARES]
    halves = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    found, shares = np.empty_like(own), []
    for rows, others in (halves, halves[::-1]):
        best = int(np.argmax([_score(spec, answers[others], labels[others]) for answers in mixed]))
        found[rows] = mixed[best][rows]
        shares.append(SHARES[best])
    return {
        "metric": spec.metrics[0],
        "shares": list(SHARES),
        "scores": [_score(spec, answers, labels) for answers in mixed],
        "chosen": _score(spec, found, labels),
        "chosen_shares": shares,
    }


def _score(spec: TaskSpec, answers: np.ndarray, labels: np.ndarray) -> float:
    return scores(spec.metrics[:1], answers, labels)[spec.metrics[0]]


def _softmax(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = found / found.sum(axis=1, keepdims=True)
    return shares
