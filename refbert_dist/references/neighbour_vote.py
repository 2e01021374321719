"""What the labels of an input's neighbours say by themselves: the classifier that no student should lose to."""

from __future__ import annotations

import numpy as np


def neighbour_vote(neighbours: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The votes of neighbours, float32 ``[N, C]``, or the mean of their scores ``[N, 1]`` where ``classes`` is 1.

    Args:
        neighbours: pool rows int64 ``[N, K]``, best first, -1 where there is none. Among classes with as many votes the
            one with the better neighbour wins; an input without neighbours gets what most of the pool has.
        labels: of the pool's rows, float32 ``[P]``.
        classes: of the task; 1 is regression.
    """
    present = neighbours >= 0
    given = labels[np.where(present, neighbours, 0)]
    if classes == 1:
        means = np.where(present, given, 0.0).sum(axis=1) / np.maximum(1, present.sum(axis=1))
        scored: np.ndarray = np.where(present.any(axis=1), means, labels.mean())
        return scored.astype(np.float32)[:, None]
    # What is added is less than half a vote in all, so it only decides between equals.
    weights = present * (1.0 + 0.5 ** np.arange(2, neighbours.shape[1] + 2))
    votes = np.stack([(weights * (given == label)).sum(axis=1) for label in range(classes)], axis=1)
    common = np.bincount(labels.astype(np.int64), minlength=classes) / len(labels)
    voted: np.ndarray = np.where(present.any(axis=1, keepdims=True), votes, common)
    return voted.astype(np.float32)
