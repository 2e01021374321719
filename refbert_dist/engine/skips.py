"""Steps that are skipped because a loss or a gradient is not finite: how many, and by whose fault."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

NAMED = 16
"""Samples that a message names at most."""


@dataclass(frozen=True)
class Skips:
    """What was skipped since the last look."""

    steps: int
    in_a_row: int
    """Longest row since the job was started."""
    samples: tuple[int, ...]
    """Of the micro-batches whose loss was not finite; none if only gradients were not."""

    def __str__(self) -> str:
        if not self.samples:
            return "a gradient was not finite, though every loss was"
        named = ", ".join(map(str, self.samples[:NAMED]))
        more = f" and {len(self.samples) - NAMED} more" if len(self.samples) > NAMED else ""
        return f"the loss was not finite in micro-batches of these samples: {named}{more}"


class SkipWatch:
    """Counts skipped steps and remembers whose loss was not finite; the device is waited for only in :meth:`look`."""

    def __init__(self, limit: int, device: torch.device) -> None:
        """``limit``: steps after which a look is due."""
        self._limit = limit
        self._skipped = torch.zeros((), device=device)
        self._row = torch.zeros((), device=device)
        self._longest = torch.zeros((), device=device)
        self._seen: list[tuple[np.ndarray, torch.Tensor]] = []
        self._steps = 0

    def saw(self, samples: np.ndarray, loss: torch.Tensor) -> None:
        """The loss of a micro-batch of this process."""
        self._seen.append((samples, torch.isfinite(loss.detach())))

    def end_step(self, skipped: torch.Tensor) -> None:
        """A step was taken or ``skipped`` (a boolean, the same in every process)."""
        self._skipped += skipped
        self._row = (self._row + 1) * skipped
        self._longest = torch.maximum(self._longest, self._row)
        self._steps += 1

    @property
    def due(self) -> bool:
        """Whether it is time for a look."""
        return self._steps >= self._limit

    def look(self) -> Skips | None:
        """What was skipped since the last look, or None. A collective where something was."""
        seen, self._seen, self._steps = self._seen, [], 0
        steps = int(self._skipped)
        if not steps:
            return None
        self._skipped.zero_()
        mine = [int(sample) for samples, finite in seen if not finite for sample in samples]
        found: list[list[int]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(found, mine)
        return Skips(steps, int(self._longest), tuple(sorted({sample for part in found for sample in part})))
