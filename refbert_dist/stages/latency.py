"""Latency of several systems in one run: they take turns, so that a drifting machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
Seconds = list[list[float]]
"""Of each pass, by round."""

SETTLED_S = 0.5
"""A pass that takes longer does not notice what another system has left in the processor's caches."""


def median_latencies(systems: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of one call of each system; one call a turn."""
    found = taken_in_turns(systems, repeats)
    return {name: statistics.median(seconds for (seconds,) in rounds) for name, rounds in found.items()}


def taken_in_turns(
    systems: Mapping[Name, Callable[[], object]],
    rounds: int,
    turn_s: float | None = None,
    done: Callable[[], object] = lambda: None,
) -> dict[Name, Seconds]:
    """Seconds of calls of every system.

    Args:
        systems: to be called; once each before anything is measured.
        rounds: in each of them every system has a turn.
        turn_s: a turn's calls take at least so long together. They are preceded by one that is not measured, where it
            might matter that another system ran before. None: a turn is one call.
        done: called after every turn.
    """
    found: dict[Name, Seconds] = {name: [] for name in systems}
    warm = {name: _seconds(call) for name, call in systems.items()}
    for _ in range(rounds):
        for name, call in systems.items():
            if turn_s is not None and warm[name] < SETTLED_S:
                call()
            turn = [_seconds(call)]
            while turn_s is not None and sum(turn) < turn_s:
                turn.append(_seconds(call))
            warm[name] = turn[-1]
            found[name].append(turn)
            done()
    return found


def _seconds(call: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
