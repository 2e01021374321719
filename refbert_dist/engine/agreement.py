"""How the processes of a world come to stop at the same step, whichever of them was asked to."""

from __future__ import annotations

import torch

from refbert_dist.engine.stop import StopFlag

CHECK_INTERVAL_S = 5.0
"""Time between two agreements of the processes."""
CHECK_STEPS = 10
"""The same in steps, at most: each agreement costs one small all-reduce."""


class Agreement:
    """When the processes of a world ask each other whether to stop: the same steps on all, about every five seconds."""

    def __init__(self, flag: StopFlag, step: int) -> None:
        self._flag = flag
        self._step = step
        self._next = step + 1

    def reached(self, step: int, seconds: float) -> bool:
        """True on every process once any process was asked to stop. A collective, at the steps that it chooses.

        Args:
            step: number of the step that has just ended.
            seconds: time since the loop began, here.
        """
        if step < self._next:
            return False
        pace = seconds / (step - self._step)
        found = torch.tensor([float(self._flag.requested), pace])
        if torch.cuda.is_available():
            found = found.cuda()
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        requested, slowest = found.tolist()
        self._next = step + max(1, min(CHECK_STEPS, int(CHECK_INTERVAL_S / slowest) if slowest > 0 else CHECK_STEPS))
        return bool(requested)
