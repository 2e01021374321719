from typing import Any

import numpy as np
import pytest

from refbert_dist.data.tasks import task_spec
from refbert_dist.references.guards import TextPair
from refbert_dist.references.informativeness import informativeness, label_rows, mismatch, word_counts

COLA, STSB = task_spec("CoLA"), task_spec("STS-B")


def told(*lengths: tuple[int, int, float], error: float = 0.01) -> dict[str, Any]:
    """Of rows whose shortest has so many words: how many, and their agreement."""
    rows = sum(count for _, count, _ in lengths)
    return {
        "measure": "share of equal labels",
        "nearest": sum(count * share for _, count, share in lengths) / rows,
        "random": 0.5,
        "standard_error": error,
        "by_length": [{"min_words": fewest, "rows": count, "nearest": share} for fewest, count, share in lengths],
        "vote": {"k": 8, "measure": "accuracy", "score": 0.75},
    }


def test_words_of_both_sentences_count() -> None:
    assert word_counts([("One, two - three!", None), ("a b", "c"), ("?", None)]).tolist() == [3, 3, 0]


def test_agreement_by_length_and_the_vote_of_all() -> None:
    texts: list[TextPair] = [("one two", None), ("one two three", None), ("a b c d", None), ("a", None)]
    ids = np.array([[0, 2, 2], [1, 0, 3], [2, -1, -1], [-1, -1, -1]])
    labels, pool = np.array([0, 0, 1, 0], np.float32), np.array([0, 1, 1, 0, 0], np.float32)
    found = informativeness(ids, texts, labels, pool, COLA)
    assert found["nearest"] == pytest.approx(2 / 3) and found["rows"] == 3
    assert found["standard_error"] == pytest.approx(np.std([1, 0, 1]) / np.sqrt(3))
    assert found["by_length"] == [
        {"min_words": 1, "rows": 1, "nearest": 1.0},
        {"min_words": 3, "rows": 2, "nearest": 0.5},
    ]
    # The two neighbours of another label outvote the nearest; most of the pool has 0.
    assert found["vote"] == {"k": 3, "measure": "accuracy", "score": 3 / 4}
    assert informativeness(np.full((4, 1), -1), texts, labels, pool, COLA)["standard_error"] is None


def test_scores_are_correlated_with_the_mean_of_the_neighbours() -> None:
    texts: list[TextPair] = [("a", "b")] * 3
    labels, pool = np.array([1, 2, 4], np.float32), np.array([0, 2, 4], np.float32)
    found = informativeness(np.array([[0, 1], [1, 1], [2, 2]]), texts, labels, pool, STSB)
    assert found["nearest"] == pytest.approx(1 / 3)
    assert found["vote"]["score"] == pytest.approx(np.corrcoef([1, 2, 4], labels)[0, 1])
    assert informativeness(np.array([[0], [0], [0]]), texts, labels, pool, STSB)["vote"]["score"] == 0


def test_no_mismatch_within_three_hundredths() -> None:
    assert mismatch(told((1, 50, 0.70)), told((1, 50, 0.68)), COLA, False) is None
    assert mismatch(told((1, 50, 0.60)), told((1, 50, 0.68)), COLA, False) is None
    nothing = told((1, 50, 0.6)) | {"nearest": None}
    assert mismatch(nothing, told((1, 50, 0.5)), COLA, False) is None
    # Of scores from 0 to 5 a smaller difference is the better one, and 0.15 are allowed.
    assert mismatch(told((1, 50, 1.2)), told((1, 50, 1.3)), STSB, False) is None
    found = mismatch(told((1, 50, 1.2)), told((1, 50, 1.4)), STSB, False)
    assert found and found["gap"] == pytest.approx(0.2)
    assert "another references.retriever" in found["message"]


def test_where_lengths_are_the_cause_the_setting_is_named() -> None:
    train, dev = told((1, 50, 0.9), (6, 25, 0.71), (15, 25, 0.65)), told((6, 10, 0.7), (15, 40, 0.65))
    found = mismatch(train, dev, COLA, True)
    assert found and found["train"] == pytest.approx(0.79) and found["held_out"] == pytest.approx(0.66)
    assert found["at_held_out_lengths"] == pytest.approx(0.2 * 0.71 + 0.8 * 0.65)
    assert found["message"].endswith(
        "their lengths are the cause, and task.min_words=6 would leave out what is too short"
    )
    assert "0.790 for train, 0.660 with a standard error of 0.010 for held-out, and 0.662 for train" in found["message"]


def test_where_they_are_not_phrases_are_asked_for_first() -> None:
    train, dev = told((6, 50, 0.8)), told((6, 50, 0.65))
    apart, together = (mismatch(train, dev, COLA, known) for known in (True, False))
    assert together and "task.phrases=true keeps them apart" in together["message"]
    assert apart and "another references.retriever" in apart["message"]
    older = {name: value for name, value in train.items() if name in ("measure", "nearest", "random")}
    found = mismatch(older, dev, COLA, True)
    assert found and found["at_held_out_lengths"] is None and "as long as these" not in found["message"]


def test_rows_of_the_table() -> None:
    rows = label_rows(told((1, 50, 0.9), (51, 10, 0.7)), told((51, 50, 0.6)))
    assert rows == [
        ("nearest", pytest.approx(52 / 60), 0.6, 0.5),
        ("1 to 2 words", 0.9, None, None),
        ("51 or more words", 0.7, 0.6, None),
        ("vote of 8, accuracy", 0.75, 0.75, None),
    ]
    older = {"measure": "share of equal labels", "nearest": 0.7, "random": 0.5}
    assert label_rows(None, older) == [("nearest", None, 0.7, 0.5)]
