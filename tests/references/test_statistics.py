import numpy as np
import pytest

from refbert_dist.references.statistics import label_agreement, similarity


def test_similarity_of_known_neighbours() -> None:
    queries = [("one two", None), ("one two three four", None), ("five", None), ("six", None)]
    pool = [("ONE two!", None), ("four five", None)]
    ids = np.array([[0, 1], [1, -1], [1, 0], [-1, -1]])
    scores = np.array([[4.0, 1.0], [2.0, 0.0], [3.0, 1.0], [0.0, 0.0]], np.float32)
    assert similarity(ids, scores, queries, pool) == {
        "share_with_all": 0.5,
        "share_with_any": 0.75,
        "mean_first_score": 3.0,
        "mean_first_overlap": pytest.approx((1 + 1 / 5 + 1 / 2) / 3),
    }
    nothing = similarity(np.full((4, 2), -1), np.zeros((4, 2), np.float32), queries, pool)
    assert set(nothing.values()) == {0.0}


def test_agreement_of_classes() -> None:
    pool = np.array([0, 1] * 500, np.float32)
    queries = np.array([0, 0, 1, 1] * 250, np.float32)
    ids = np.tile([[0], [2], [1], [-1]], (250, 1))
    found = label_agreement(ids, queries, pool, regression=False, seed=0)
    assert found["nearest"] == 1.0
    assert found["random"] == pytest.approx(0.5, abs=0.02)
    assert found == label_agreement(ids, queries, pool, regression=False, seed=0)


def test_agreement_of_scores() -> None:
    pool = np.array([0.0, 5.0], np.float32)
    queries = np.array([1.0, 4.5, 2.5], np.float32)
    found = label_agreement(np.array([[0], [1], [-1]]), queries, pool, regression=True, seed=0)
    assert found["measure"] == "mean absolute difference"
    assert found["nearest"] == pytest.approx(0.75)
    assert 2.0 < found["random"] < 3.0
    assert label_agreement(np.full((3, 1), -1), queries, pool, regression=True, seed=0)["nearest"] is None
