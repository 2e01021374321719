"""What is known of a trial: ``RUN_DIR/trials/NNNN/trial.json``. Together they are the state of a search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from refbert_dist.artifacts import make_folder, read_json, write_json

State = Literal["waiting", "running", "finished", "stopped", "failed"]
"""``finished``: scored at its end; ``stopped``: ended early by the scheduler."""
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")
FILE_NAME = "trial.json"


@dataclass(frozen=True)
class Rung:
    """A score of a trial, after a share of the general stage."""

    share: float
    """1 is the end."""
    figures: dict[str, float]
    """Metrics of the task on the held-out rows; ``parameters``, ``gflops`` and, if timed, ``latency_ms`` of the shape;
    ``seconds`` of training in all; ``teacher_samples`` that this trial ran the teacher on."""


@dataclass(frozen=True)
class Trial:
    """One point of the space, and how far it is."""

    number: int
    """From 1, in the order in which they were chosen."""
    point: dict[str, Any]
    """Field -> value."""
    state: State = "waiting"
    rungs: list[Rung] = field(default_factory=list)
    """In order; the last one counts."""
    error: str | None = None
    """Why it failed."""
    started: float | None = None
    """Seconds since 1970, of the first start."""
    ended: float | None = None
    """Of its end."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:04d}"

    @property
    def figures(self) -> dict[str, float]:
        """What it has come to so far."""
        return self.rungs[-1].figures if self.rungs else {}


def trial_folder(run_dir: Path, number: int) -> Path:
    """The run directory of a trial."""
    return run_dir / "trials" / f"{number:04d}"


def save_trial(run_dir: Path, trial: Trial) -> None:
    """Write its record, whole or not at all."""
    folder = trial_folder(run_dir, trial.number)
    make_folder(folder)
    write_json(folder / FILE_NAME, asdict(trial))


def read_trial(run_dir: Path, number: int) -> Trial:
    """The record of a trial."""
    return _read(trial_folder(run_dir, number) / FILE_NAME)


def read_trials(run_dir: Path) -> list[Trial]:
    """All trials of a search, by number."""
    return [_read(path) for path in sorted((run_dir / "trials").glob(f"*/{FILE_NAME}"))]


def _read(path: Path) -> Trial:
    data = read_json(path)
    return Trial(**{**data, "rungs": [Rung(**rung) for rung in data["rungs"]]})


def finished(trials: Iterable[Trial]) -> list[Trial]:
    """Those that went to their end."""
    return [trial for trial in trials if trial.state == "finished"]
