"""How far a stage is: a status file and one log line now and then, with percentage, rate and remaining time."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from refbert_dist.tracking.files import read_json_or_none, replace_json

WRITE_INTERVAL_S = 0.5
LOG_INTERVAL_S = 10.0
RATE_WINDOW_S = 30.0

logger = logging.getLogger(__name__)


def _to_log(line: str) -> None:
    logger.info("%s", line)


class Progress:
    """Counts ``done`` of ``total`` units of a stage; used by one process of it.

    The first update is where the rate is measured from, so after a resume call ``update(start)`` before the loop.

    Args:
        stage: name, also of the file ``RUN_DIR/logs/STAGE.progress.json``.
        total: units when the stage is finished; None where that is not known beforehand.
        unit: plural name of a unit, such as ``steps`` or ``tokens``.
        run_dir: where the file goes; without it only log lines are written.
        enabled: False makes every method do nothing (all ranks but the first).
        say: takes the line that is due now and then.
    """

    def __init__(
        self,
        stage: str,
        total: int | None,
        unit: str,
        run_dir: Path | str | None = None,
        enabled: bool = True,
        say: Callable[[str], object] = _to_log,
    ) -> None:
        self.stage = stage
        self.total = total
        self.unit = unit
        self._path = progress_path(run_dir, stage) if run_dir is not None else None
        self._enabled = enabled
        self._history: deque[tuple[float, int]] = deque()
        self.state: dict[str, Any] | None = None
        """As :func:`read_progress` gives it."""
        self._say = say
        self._written_at = -WRITE_INTERVAL_S
        self._logged_at = monotonic()
        self._logged: dict[str, Any] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.state is not None and self.state is not self._logged:
            self._write()
            self._log()

    def update(self, done: int, **numbers: float) -> None:
        """Say that ``done`` units are finished in all; ``numbers`` (the loss, say) are shown beside until replaced."""
        if not self._enabled:
            return
        now = monotonic()
        self._history.append((now, done))
        while len(self._history) > 2 and now - self._history[1][0] >= RATE_WINDOW_S:
            self._history.popleft()
        since, before = self._history[0]
        rate = (done - before) / (now - since) if now > since and done > before else None
        self.state = {
            "stage": self.stage,
            "done": done,
            "total": self.total,
            "unit": self.unit,
            "rate": rate,
            "eta_s": max(self.total - done, 0) / rate if rate and self.total is not None else None,
            "time": time.time(),
            "numbers": {**(self.state["numbers"] if self.state else {}), **numbers},
        }
        if now - self._written_at >= WRITE_INTERVAL_S:
            self._written_at = now
            self._write()
        if now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            self._log()

    def _write(self) -> None:
        if self._path is not None:
            replace_json(self._path, self.state)

    def _log(self) -> None:
        if self.state is not None:
            self._logged = self.state
            self._say(format_progress(self.state))


def progress_path(run_dir: Path | str, stage: str) -> Path:
    """The status file of a stage."""
    return Path(run_dir) / "logs" / f"{stage}.progress.json"


def read_progress(run_dir: Path | str, stage: str) -> dict[str, Any] | None:
    """Latest state of a stage: stage, done, total, unit, rate (units/s), eta_s, time, numbers; None if there is none.

    ``total``, ``rate`` and ``eta_s`` are None where they are not known.
    """
    state: dict[str, Any] | None = read_json_or_none(progress_path(run_dir, stage))
    return state


def format_progress(state: dict[str, Any]) -> str:
    """One line: ``distill-general  42 %  840/2000 steps  12.3 steps/s  ETA 1:35  loss 3.21``."""
    done, total, unit, rate, eta_s = (state[name] for name in ("done", "total", "unit", "rate", "eta_s"))
    if total is None:
        parts = [state["stage"], f"{done} {unit}"]
    else:
        parts = [state["stage"], f"{100 * done // total if total else 100} %", f"{done}/{total} {unit}"]
    if rate is not None:
        parts.append(f"{rate:.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s")
    if eta_s is not None:
        parts.append(f"ETA {format_duration(eta_s)}")
    parts += [f"{name} {value:.4g}" for name, value in state["numbers"].items()]
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """``1:35`` or ``2:01:35``; days count as hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def shown(what: str, total: int | None, unit: str, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far work in this process is; gives the function that is told how many units are done.

    A terminal gets a bar, anything else a line now and then; work that is soon done needs none.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    terminal, started = sys.stderr.isatty(), monotonic()

    def say(line: str) -> None:
        if not terminal and monotonic() - started >= LOG_INTERVAL_S:
            sys.stderr.write(f"{line}\n")

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
    bars = Bars(*columns, console=Console(stderr=True), disable=not (enabled and terminal))
    with bars, Progress(what, total, unit, enabled=enabled, say=say) as progress:
        task = bars.add_task(what, total=total)

        def update(done: int) -> None:
            progress.update(done)
            if progress.state:
                bars.update(task, description=format_progress(progress.state), completed=done)

        yield update


@contextlib.contextmanager
def show(run_dir: Path | str, stage: str, log: Path) -> Iterator[Callable[[], None]]:
    """Show on stderr how far the processes of a stage are; gives the function to call a few times a second.

    A terminal gets bars, fed by every progress file that changes meanwhile (a stage with several jobs writes one for
    each job). Anything else gets the lines that the first process appends to ``log``, which hold rate and ETA already.
    """
    view = _bar(Path(run_dir), stage) if sys.stderr.isatty() else _forward(log)
    with view as refresh:
        try:
            yield refresh
        finally:
            refresh()


@contextlib.contextmanager
def _bar(run_dir: Path, stage: str) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    def changed() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (run_dir / "logs").glob("*.progress.json")}

    def refresh() -> None:
        for path, modified in sorted(changed().items(), key=lambda item: item[1]):
            if seen.get(path) == modified or (state := read_json_or_none(path)) is None:
                continue
            seen[path] = modified
            if path not in tasks:
                bars.update(waiting, visible=False)
                tasks[path] = bars.add_task("", total=None)
            bars.update(tasks[path], description=format_progress(state), completed=state["done"], total=state["total"])

    # What an earlier start left is not progress of this one.
    seen = changed()
    tasks: dict[Path, TaskID] = {}
    with Bars(BarColumn(bar_width=24), TextColumn("{task.description}"), console=Console(stderr=True)) as bars:
        waiting = bars.add_task(f"{stage}  starting", total=None)
        yield refresh


@contextlib.contextmanager
def _forward(log: Path) -> Iterator[Callable[[], None]]:
    log.touch()
    with log.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        rest = b""

        def refresh() -> None:
            nonlocal rest
            *lines, rest = (rest + stream.read()).split(b"\n")
            # The header by which each start is told apart in the file says nothing new to the one who started it.
            shown = [line for line in lines if not line.startswith(b"=== ")]
            if shown:
                sys.stderr.write("".join(line.decode(errors="replace") + "\n" for line in shown))
                sys.stderr.flush()

        yield refresh
        if rest:
            sys.stderr.write(rest.decode(errors="replace") + "\n")
