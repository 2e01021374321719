"""Latency of several systems in one run: passes interleaved, so that a drifting machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_latencies(systems: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of one call of each system."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    for call in systems.values():  # warm-up
        call()
    for _ in range(repeats):
        for name, call in systems.items():
            _wait()
            start = time.perf_counter()
            call()
            _wait()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
