"""Stopping on purpose: a signal is noted, and the work ends where it can be continued.

Outside the training loop everything is written so that it may end at any moment, and a signal raises
:class:`StoppedError` at once. Inside it the signal only sets a flag: the processes agree on it and save together.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from refbert_dist.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""SIGUSR2 is what SLURM sends, through submitit, some time before the end."""


class StopFlag:
    """Notes SIGTERM, SIGINT and SIGUSR2 while inside the ``with`` block; the handlers that stood come back after it."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopFlag:
        # Python delivers signals to the main thread only and refuses handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
            # Whoever started this process may have blocked them for itself, which is inherited.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def renew(self) -> None:
        """Take the signals back from a library that has set handlers of its own."""
        for number in self._before:
            signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets the flag; also after an error, which on its way out is not to become a stop."""
        self._deferred = True
        yield
        self._deferred = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # A scheduler sends several signals one after the other; the second must not disturb what the first has begun.
        first = not self.requested
        self.requested = True
        if first and not self._deferred:
            raise StoppedError(f"stopped by {signal.Signals(number).name}; run the same command again to continue")


_flag: StopFlag | None = None


@contextlib.contextmanager
def watching_signals() -> Iterator[StopFlag]:
    """Watch for signals; inside another such block it is the same flag, so that no request is ever forgotten."""
    global _flag
    if _flag is not None:
        yield _flag
        return
    with StopFlag() as _flag:
        try:
            yield _flag
        finally:
            _flag = None


def ignore_signals() -> None:
    """For the end of a process, whose exit code is settled: Python takes seconds, and its handlers away, to go."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
