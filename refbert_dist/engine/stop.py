"""Stopping on purpose: a signal sets a flag, the processes agree on it, the loop saves at a step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR2 while inside the ``with`` block; the handlers that stood come back after it."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopFlag:
        # Python delivers signals to the main thread only and refuses handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True

    def agreed(self) -> bool:
        """True on every process once any process was asked to stop. A collective."""
        flag = torch.tensor(float(self.requested))
        if torch.cuda.is_available():
            flag = flag.cuda()
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())
