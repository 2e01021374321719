"""The vote of the neighbours' labels."""

import numpy as np
import pytest

from refbert_dist.references.neighbour_vote import neighbour_vote

LABELS = np.array([0, 1, 1, 2, 0, 1], np.float32)


@pytest.mark.parametrize(
    ("neighbours", "expected"),
    [
        ([0], 0),
        ([3, 1, 2], 1),
        ([3, 1], 2),
        ([1, 3], 1),
        ([0, 1, 3, 2], 1),
        ([-1, -1], 1),
        ([3, -1], 2),
        ([4, 0, 1, 2, 5, 3, -1], 1),
    ],
    ids=["one", "majority", "tie: the first", "tie: the other first", "two of four", "none: commonest", "some", "many"],
)
def test_classes(neighbours: list[int], expected: int) -> None:
    votes = neighbour_vote(np.array([neighbours]), LABELS, 3)
    assert votes.shape == (1, 3) and votes.argmax() == expected


def test_scores_are_meaned() -> None:
    found = neighbour_vote(np.array([[3, 0], [3, -1], [-1, -1]]), LABELS, 1)
    np.testing.assert_allclose(found, [[1.0], [2.0], [LABELS.mean()]])
