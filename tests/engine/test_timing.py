import re
from collections.abc import Iterator

import pytest
import torch

from refbert_dist.engine import timing
from refbert_dist.engine.timing import StepTimer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, for the test to turn."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_parts_and_the_rest_are_the_whole(clock: list[float]) -> None:
    timer = StepTimer(torch.device("cpu"), exact=True)

    def slow() -> Iterator[int]:
        for number in range(2):
            clock[0] += 1.0
            yield number
        clock[0] += 0.5  # finding that there is no more

    for _ in timer.waits(slow()):
        with timer.part("forward"):
            clock[0] += 2.0
        with timer.part("backward"):
            clock[0] += 4.0
        clock[0] += 0.25
        timer.end_step(tokens=70)
    assert timer.parts() == {"data": 2.5, "forward": 4.0, "backward": 8.0, "other": 0.5}
    assert (timer.seconds, timer.steps, timer.tokens) == (15.0, 2, 140)
    assert re.fullmatch(r"0\.133 steps/s, 9 tokens/s; 16\.7% of the time waited for data", str(timer))


def test_what_was_timed_before_a_restart_is_forgotten(clock: list[float]) -> None:
    timer = StepTimer(torch.device("cpu"), exact=False)
    with timer.part("forward"):
        clock[0] += 2.0
    timer.end_step(10)
    timer.restart()
    clock[0] += 1.0
    assert timer.parts() == {"other": 1.0} and (timer.steps, timer.tokens) == (0, 0)


def test_the_time_of_a_part_that_fails_is_in_the_rest(clock: list[float]) -> None:
    timer = StepTimer(torch.device("cpu"), exact=False)
    with pytest.raises(KeyError), timer.part("forward"):
        clock[0] += 2.0
        raise KeyError
    assert timer.parts() == {"other": 2.0}
