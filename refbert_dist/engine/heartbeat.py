"""A process that hangs ends with the stacks of all its threads in its log; so do those that wait for it."""

from __future__ import annotations

import faulthandler
import sys
import time
from types import TracebackType

REARM_S = 1.0
"""Setting the alarm anew starts a thread, so it is not done for every step of a fast loop."""


class Heartbeat:
    """Ends this process, with the stack of every thread on stderr, ``timeout_s`` seconds after the last beat.

    The alarm is a thread of the interpreter's core that needs no lock of Python's, so it also ends a process that hangs
    in a library.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._set_at = 0.0

    def __enter__(self) -> Heartbeat:
        self._set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """All is well."""
        if time.monotonic() - self._set_at >= min(REARM_S, self._timeout_s / 2):
            self._set()

    def _set(self) -> None:
        self._set_at = time.monotonic()
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=sys.__stderr__ or sys.stderr)
