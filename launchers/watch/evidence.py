"""What the processes of a stage have left in ``RUN_DIR/logs``: which one failed first, and with what words."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbert_dist.engine.reports import error_path, log_path
from refbert_dist.errors import StoppedError
from refbert_dist.tracking.files import read_json_or_none

TAIL_BYTES = 65536
START = "=== "
"""Begins the line by which each start of a process is told apart in its log."""

ERROR = re.compile(
    r"^(\[rank\d+\]: ?)?([\w.]*(Error|Exception)\b|Fatal Python error|Segmentation fault|Bus error|terminate called)"
    r"|^\S+ \S+ (ERROR|CRITICAL) "
)
"""A line that says what went wrong: the end of a traceback, a crash, or a log line of that level."""
LOST_PEER = re.compile("connection (was )?(closed|reset)|broken pipe|timed out|peer", re.IGNORECASE)
"""An error that the loss of another process brings about."""
MESSAGE_LENGTH = 300
SRUN = re.compile(r"^srun: error: (\S+): (tasks? [\d,-]+: (?!Terminated|Exited).*)$", re.MULTILINE)
"""What srun says of a process that was killed; the others, which it then ends, are ``Terminated``."""


@dataclass(frozen=True)
class Trace:
    """What one process has left."""

    number: int
    log: Path
    ended_at: float
    """When it wrote last, seconds since the epoch."""
    report: dict[str, Any] | None
    """``exit_code`` and ``message``, if it could explain its failure."""

    @property
    def stopped(self) -> bool:
        """Whether it ended because it was told to."""
        return self.report is not None and self.report["exit_code"] == StoppedError.exit_code

    @property
    def message(self) -> str | None:
        """Its own sentence, or the last line of its log that looks like an error."""
        if self.report is not None:
            return str(self.report["message"])
        line = next((line for line in reversed(_last_start(self.log)) if ERROR.search(line)), None)
        return f"process {self.number}: {line[:MESSAGE_LENGTH]}" if line else None

    @property
    def tells_cause(self) -> bool:
        """Whether its message is about more than being told to stop, or missing other processes."""
        return (
            self.message is not None and not self.stopped and (bool(self.report) or not LOST_PEER.search(self.message))
        )


def traces(run_dir: Path, stage: str, since: float = 0.0, numbers: Container[int] | None = None) -> list[Trace]:
    """What the processes of a stage have left.

    Args:
        run_dir: the run directory.
        stage: name of the stage.
        since: what is older (seconds since the epoch) belongs to earlier jobs and is left out.
        numbers: of these processes only; None: all.
    """
    found = []
    for log in log_path(run_dir, stage, 0).parent.glob(f"{stage}-rank*.log"):
        number = int(log.stem.rpartition("rank")[2])
        if log.stat().st_mtime < since or (numbers is not None and number not in numbers):
            continue
        path = error_path(run_dir, stage, number)
        fresh = path.exists() and path.stat().st_mtime >= since
        found.append(Trace(number, log, log.stat().st_mtime, read_json_or_none(path) if fresh else None))
    return found


def first_failed(found: Iterable[Trace]) -> Trace | None:
    """The process whose failure came first, as far as can be told; None if there are no traces.

    One that explains itself comes before one that crashed, and that before those that were killed without a word or
    only missed the others; among equals the one that fell silent first.
    """

    def order(trace: Trace) -> tuple[int, float]:
        if trace.stopped:
            return 3, trace.ended_at
        if not trace.tells_cause:
            return 2, trace.ended_at
        return 0 if trace.report else 1, trace.ended_at

    return min(found, key=order, default=None)


def crashed_before(found: Iterable[Trace]) -> Trace | None:
    """A process in whose log, of this start or earlier ones, the cause of a crash stands; None if there is none."""

    def tells(line: str) -> bool:
        return bool(ERROR.search(line)) and not LOST_PEER.search(line)

    return next((trace for trace in found if any(map(tells, _tail(trace.log)))), None)


def _last_start(log: Path) -> list[str]:
    """The lines of the newest start in a log, as far as its tail holds them."""
    lines = _tail(log)
    starts = [index for index, line in enumerate(lines) if line.startswith(START)]
    return lines[starts[-1] + 1 :] if starts else lines


def _tail(log: Path) -> list[str]:
    """The lines in the last 64 KiB; blank ones left out."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = stream.read().decode(errors="replace")
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def slurm_files(folder: Path, job_id: str) -> list[Path]:
    """What SLURM and srun have written about a job, where there is anything; ``folder``: of submitit's files."""
    return [path for path in sorted(folder.glob(f"{job_id}_*_log.*")) if path.stat().st_size]


def srun_words(folder: Path, job_id: str) -> str | None:
    """How srun saw the last process of a job fail: ``task 1: Killed, on n3``; None if it said nothing."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in slurm_files(folder, job_id)]
    found = [match for text in texts for match in SRUN.findall(text)]
    return "{1}, on {0}".format(*found[-1]) if found else None
