"""The Pareto front, and choosing from it."""

import pytest

from refbert_dist.errors import UserError
from tune.front import Objective, knee, pareto_front, pick

SCORE, LATENCY = Objective("score", True), Objective("latency_ms", False)
TRIALS = [
    {"score": 0.60, "latency_ms": 1.0, "parameters": 3.0},
    {"score": 0.80, "latency_ms": 2.0, "parameters": 9.0},
    {"score": 0.70, "latency_ms": 3.0, "parameters": 2.0},  # slower and worse than the one before
    {"score": 0.85, "latency_ms": 9.0, "parameters": 9.0},
    {"score": 0.80, "latency_ms": 2.0, "parameters": 8.0},  # as good as the second
]


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto_front(TRIALS, [SCORE, LATENCY]) == [0, 1, 3, 4]
    assert pareto_front(TRIALS, [SCORE]) == [3]
    assert pareto_front(TRIALS, [LATENCY]) == [0]
    assert pareto_front([], [SCORE]) == []


@pytest.mark.parametrize(
    ("how", "number"),
    [("knee", 1), ("score", 3), ("latency_ms", 0), ("latency_ms<=2.5", 1), ("score>=0.7", 3), ("parameters<=2", 2)],
)
def test_choosing(how: str, number: int) -> None:
    assert pick(how, TRIALS, [SCORE, LATENCY]) == number


def test_the_knee_of_a_single_trial_is_it() -> None:
    assert knee(TRIALS[2:3], [SCORE, LATENCY]) == 0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("best", "--pick is 'best'; write one of knee, score, latency_ms, score<=X"),
        ("latency<=2", "--pick is 'latency<=2'; write one of"),
        ("latency_ms<=1e", "write one of"),
        ("latency_ms<=0.5", "the nearest trial has latency_ms=1; choose another bound"),
        ("score>=0.9", "the nearest trial has score=0.85"),
    ],
)
def test_choices_that_leave_nothing(how: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pick(how, TRIALS, [SCORE, LATENCY])
