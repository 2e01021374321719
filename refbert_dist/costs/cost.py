"""A place to run, and what a stage takes there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from refbert_dist.costs.rates import Rates


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it runs: ``processes`` of ``threads`` threads on as many devices, and CPU cores for text and lookup."""

    rates: Rates
    processes: int
    threads: int = 1
    """Cores of each process where a device is a core; 1 where it is a GPU."""
    cores: int


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Of one stage."""

    samples: int = 0
    """Samples that are processed, those of every epoch and system counted."""
    tokens: float = 0.0
    device_s: float = 0.0
    """Seconds of all devices together that compute."""
    core_s: float = 0.0
    """Seconds of all CPU cores together, of work that needs no device."""
    wall_s: float = 0.0
    bytes: float = 0.0
    """Left on disk."""
    files: int = 0
    read_bytes_s: float = 0.0
    """What each process reads from the cache in a second."""
    memory_bytes: float = 0.0
    """Of each process, where it is worth knowing."""
    used: int = 0
    """Processes that have something to do."""

    def __add__(self, other: StageCost) -> StageCost:
        longer = max(self, other, key=lambda cost: cost.wall_s)
        return StageCost(
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            device_s=self.device_s + other.device_s,
            core_s=self.core_s + other.core_s,
            wall_s=self.wall_s + other.wall_s,
            bytes=self.bytes + other.bytes,
            files=self.files + other.files,
            read_bytes_s=longer.read_bytes_s,
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
            used=longer.used,
        )


def total(costs: Iterable[StageCost]) -> StageCost:
    """All of them, one after the other."""
    added = StageCost()
    for cost in costs:
        added += cost
    return added
