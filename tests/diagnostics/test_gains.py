"""Tables of a few rows, each number computed by hand."""

import numpy as np
import pytest

from refbert_dist.data.tasks import task_spec
from refbert_dist.diagnostics.gains import (
    ANOTHER,
    NONE,
    SAME,
    attention_table,
    by_label,
    by_similarity,
    kinds,
    row_scores,
)

COLA, STSB = task_spec("CoLA"), task_spec("STS-B")
POOL = np.array([0, 1], np.float32)
LABELS = np.array([0, 0, 1, 1], np.float32)
KIND = kinds(np.array([0, 1, 1, 1]), LABELS, POOL, COLA)
"""Rows 0, 2 and 3 have a neighbour with their label."""
SCORES = {
    "teacher": np.array([1.0, 1, 1, 1]),
    "knn": np.array([1.0, 0, 1, 1]),
    "tinybert": np.array([0.0, 1, 0, 1]),
    "refbert": np.array([1.0, 0, 1, 1]),
}


def test_kinds_of_rows() -> None:
    assert KIND.tolist() == [SAME, ANOTHER, SAME, SAME]
    scores = kinds(np.array([0, 0, 0, -1]), np.array([1.0, 1.5, 1.6, 1.0]), np.array([1.0]), STSB)
    assert scores.tolist() == [SAME, SAME, ANOTHER, NONE]


def test_scores_of_rows() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 3.0]])
    assert row_scores(logits, np.array([0, 0]), COLA).tolist() == [1, 0]
    assert row_scores(np.array([[2.0], [4.5]]), np.array([3.0, 4.0]), STSB).tolist() == [1.0, 0.5]


def test_cells_of_systems_by_the_neighbours_label() -> None:
    same, another, every = by_label(SCORES, KIND)
    assert [(cell["neighbour"], cell["rows"]) for cell in (same, another, every)] == [
        (SAME, 3),
        (ANOTHER, 1),
        ("any", 4),
    ]
    # TinyBERT: 0, 0, 1; RefBERT: 1, 1, 1; their differences: 1, 1, 0.
    error = np.sqrt(2 / 9 * 3 / 2 / 3)
    assert same["systems"]["tinybert"] == {"mean": pytest.approx(1 / 3), "standard_error": pytest.approx(error)}
    assert same["systems"]["refbert"] == {"mean": 1.0, "standard_error": 0.0}
    assert same["beside_tinybert"] == {
        "refbert": {"mean": pytest.approx(2 / 3), "standard_error": pytest.approx(error)}
    }
    assert another["systems"]["tinybert"] == {"mean": 1.0, "standard_error": None}
    assert another["beside_tinybert"]["refbert"]["mean"] == -1
    assert every["beside_tinybert"]["refbert"]["mean"] == pytest.approx(1 / 4)
    # Differences 1, -1, 1, 0 have a variance of 11/12.
    assert every["beside_tinybert"]["refbert"]["standard_error"] == pytest.approx(np.sqrt(11 / 12 / 4))
    assert by_label({"refbert": SCORES["refbert"]}, KIND)[0]["beside_tinybert"] == {}


def test_classes_of_similarity() -> None:
    similarity = np.array([0.4, 0.1, 0.2, 0.9])
    classes = by_similarity(SCORES, similarity, np.array([SAME, ANOTHER, SAME, NONE]))
    assert [(found["from"], found["to"], found["rows"]) for found in classes] == [
        (0.1, 0.1, 1),
        (0.2, 0.2, 1),
        (0.4, 0.4, 1),
    ]
    assert [found["same_label"] for found in classes] == [0, 1, 1]
    assert [found["systems"]["refbert"]["mean"] for found in classes] == [0, 1, 1]
    assert by_similarity(SCORES, similarity, np.full(4, NONE)) == []


def test_attention_by_the_neighbours_label() -> None:
    mass = np.array([[0.2, 0.4], [0.1, 0.1], [0.4, 0.4], [0.6, 0.4]])
    same, another = attention_table(mass, np.array([0.5, 0.25, 0.3, 0.1]), KIND)
    assert same["heads"] == pytest.approx([0.4, 0.4]) and same["rows"] == 3
    assert same["mean"] == pytest.approx(0.4) and same["standard_error"] == pytest.approx(0.1 / np.sqrt(3))
    assert same["if_even"] == pytest.approx(0.3)
    assert (another["mean"], another["standard_error"], another["if_even"]) == (pytest.approx(0.1), None, 0.25)
    assert len(attention_table(mass[[0]], np.array([0.5]), KIND[[0]])) == 1
