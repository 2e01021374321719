"""Trainings that take turns in one process, step by step, so that what disturbs the machine disturbs all alike."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch


class _OverError(Exception):
    """Ends a training between two steps."""


def cpu_s() -> float:
    """Processor time of this process, of its threads and of its DataLoader workers: other work disturbs it less."""
    times = [process.cpu_times() for process in (psutil.Process(), *psutil.Process().children())]
    return sum(time.user + time.system for time in times)


class Way:
    """A training in a thread of its own, which goes on only during its turns."""

    def __init__(self, train: Callable[["Way"], None], student: torch.nn.Module) -> None:
        self.seconds: list[float] = []
        """Of each turn, as :attr:`cpu_s` is."""
        self.cpu_s: list[float] = []
        self.positions = 0
        """Tokens and padding that the student has seen."""
        self.losses: list[float] = []
        """For the training to fill."""
        self._train = train
        self._turn = threading.Semaphore(0)
        self._ended = threading.Semaphore(0)
        self._running = True
        self._started_at: tuple[float, float] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)  # or the others would outlive an error
        student.register_forward_pre_hook(self._count, with_kwargs=True)

    def take_turn(self) -> None:
        """One optimizer step; raises what has ended the training."""
        torch.distributed.barrier()
        if not self._thread.ident:
            self._thread.start()
        self._turn.release()
        self._ended.acquire()
        if self._error:
            raise self._error

    def end(self) -> None:
        self._running = False
        self._turn.release()
        self._thread.join()

    def begins(self) -> None:
        """For the training to call where a step begins and the one before has ended; returns when it is its turn."""
        if self._started_at:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock, cpu = time.perf_counter(), cpu_s()
            self.seconds.append(clock - self._started_at[0])
            self.cpu_s.append(cpu - self._started_at[1])
            self._ended.release()
            self._turn.acquire()
        if not self._running:
            raise _OverError
        self._started_at = time.perf_counter(), cpu_s()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            with contextlib.suppress(_OverError):
                self._train(self)
        except BaseException as error:
            self._error = error
            self._ended.release()

    def _count(self, _module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        self.positions += inputs["input_ids"].numel()
