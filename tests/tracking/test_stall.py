import numpy as np
import pytest

from refbert_dist.tracking.stall import StallWatch


def said(losses: np.ndarray, steps: int, every: int = 10, begin: int = 0) -> list[tuple[int, str]]:
    """Step and sentence of everything that a watch says of a job's records."""
    watch = StallWatch(steps)
    found = []
    for place, loss in enumerate(losses, start=1):
        sentence = watch.see(begin + place * every, float(loss))
        if sentence:
            found.append((begin + place * every, sentence))
    return found


def noise(count: int, size: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0.0, size, count)


@pytest.mark.parametrize(
    "losses",
    [
        np.full(100, 0.6931),
        0.6931 + noise(100, 0.01),  # scatters, and gets nowhere
        0.6931 * (1 - 0.005 * np.linspace(0, 1, 100)),  # creeps
        0.5 + 0.01 * np.arange(100),  # grows
    ],
)
def test_a_loss_that_does_not_move_is_reported_once(losses: np.ndarray) -> None:
    ((step, sentence),) = said(losses, steps=1000)
    assert step == 250
    assert "has not moved" in sentence and "at step 10 " in sentence and "up to step 250" in sentence
    assert f"{losses[0]:.4g} at step 10" in sentence


@pytest.mark.parametrize(
    "losses",
    [
        1 / np.sqrt(np.arange(1, 101)),
        np.r_[3.0, np.full(99, 1.0)],  # all at once, then flat
        0.6931 - 0.002 * np.arange(100) + noise(100, 0.002),  # slowly, but steadily
    ],
)
def test_a_loss_that_falls_is_not(losses: np.ndarray) -> None:
    assert said(losses, steps=1000) == []


def test_a_short_job_is_judged_by_five_records_or_not_at_all() -> None:
    flat = np.ones(10)
    assert said(flat[:4], steps=4, every=1) == []
    assert [step for step, _ in said(flat, steps=10, every=1)] == [5]


def test_a_job_whose_beginning_was_not_seen_is_not_judged() -> None:
    assert said(np.ones(60), steps=1000, begin=400) == []
    assert [step for step, _ in said(np.ones(60), steps=1000, begin=100)] == [250]
