"""What was submitted for a run, and every start of it: ``RUN_DIR/submitted/``. It outlives SLURM's own memory.

``jobs.jsonl`` has a line for each job that was submitted, ``attempts/JOB.jsonl`` one for each start and each end of a
job on the nodes, and beside them lie the batch scripts as sent, in a folder for each stage.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Submission:
    """One job, or one array of jobs, that a stage was submitted as."""

    stage: str
    job_id: str
    """SLURM's number; of the whole array if it is one."""
    elements: int
    """Jobs of the array; 1: a plain job."""
    nodes: int
    """Nodes of each job."""
    tasks: int
    """Processes of each job, on all its nodes."""
    after: tuple[str, ...]
    """Stages whose jobs it waits for."""
    submitted_at: float
    """Seconds since the epoch."""

    @property
    def job_ids(self) -> list[str]:
        """Of every job of the array, as ``123_0``; of a plain job, its number."""
        return [self.job_id] if self.elements == 1 else [f"{self.job_id}_{n}" for n in range(self.elements)]


@dataclass(frozen=True)
class Attempt:
    """One start of a job on its nodes."""

    job_id: str
    number: int
    """0 is the first start, 1 the first after SLURM queued the job again."""
    host: str
    """Where its first process ran."""
    started_at: float
    """Seconds since the epoch."""
    advance: str
    """How far the stage was when it began; see :func:`refbert_dist.pipeline.advance`."""
    ended_at: float | None = None
    exit_code: int | None = None
    """None while it runs, and of one that could not say how it ended."""


def submitted(run_dir: Path) -> Path:
    """The folder of everything about submission."""
    return run_dir / "submitted"


def stage_folder(run_dir: Path, stage: str) -> Path:
    """Where submitit keeps the batch scripts and what SLURM itself writes about the jobs of a stage."""
    return submitted(run_dir) / stage


def add_submissions(run_dir: Path, submissions: Iterable[Submission]) -> None:
    """Append to the list of jobs; by the login node that holds the run's lock."""
    path = submitted(run_dir) / "jobs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    _append(path, *map(asdict, submissions))


def submissions(run_dir: Path) -> dict[str, Submission]:
    """The newest submission of each stage, by stage, in the order of submission."""
    found: dict[str, Submission] = {}
    for record in _read(submitted(run_dir) / "jobs.jsonl"):
        submission = Submission(**{**record, "after": tuple(record["after"])})
        found.pop(submission.stage, None)
        found[submission.stage] = submission
    return found


def add_attempt(run_dir: Path, attempt: Attempt) -> None:
    """Note a start, or the end, of a job; by its first process."""
    path = _attempts_path(run_dir, attempt.job_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    _append(path, asdict(attempt))


def attempts(run_dir: Path, job_id: str) -> list[Attempt]:
    """The starts of a job (``123`` or ``123_0``), oldest first."""
    found = {(record["number"], record["started_at"]): record for record in _read(_attempts_path(run_dir, job_id))}
    return [Attempt(**record) for record in found.values()]


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def _attempts_path(run_dir: Path, job_id: str) -> Path:
    return submitted(run_dir) / "attempts" / f"{job_id}.jsonl"


def _append(path: Path, *records: dict[str, Any]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(lines)
        stream.flush()
        os.fsync(stream.fileno())


def _read(path: Path) -> list[dict[str, Any]]:
    """Records in order; a line that a crash left torn is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
