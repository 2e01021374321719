"""Where the time of training steps goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class StepTimer:
    """Adds up the seconds that each part of the steps takes.

    A GPU works behind the back of the process that commands it. With ``exact`` each part is waited for, which makes
    the parts true and the whole slower; without it only the time that is waited for data is true.
    """

    def __init__(self, device: torch.device, exact: bool) -> None:
        self._exact = exact and device.type == "cuda"
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was timed so far."""
        self._began = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self.tokens = 0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside as ``name``."""
        began = time.perf_counter()
        yield
        if self._exact:
            torch.cuda.synchronize(self._device)
        self._seconds[name] += time.perf_counter() - began

    def waits(self, items: Iterator[T]) -> Iterator[T]:
        """The items; the time that each lets wait is that of the part ``data``."""
        while True:
            with self.part("data"):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def end_step(self, tokens: int) -> None:
        """A step of so many tokens, in all processes together, is over."""
        self.steps += 1
        self.tokens += tokens

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._began

    def parts(self) -> dict[str, float]:
        """Seconds of each part since the start; ``other`` is the rest."""
        whole = self.seconds
        return {**self._seconds, "other": max(0.0, whole - sum(self._seconds.values()))}

    def __str__(self) -> str:
        rates = f"{self.steps / self.seconds:.3g} steps/s, {self.tokens / self.seconds:,.0f} tokens/s"
        return f"{rates}; {self._seconds['data'] / self.seconds:.1%} of the time waited for data"
