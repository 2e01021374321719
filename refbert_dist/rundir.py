"""The run directory: one experiment lives in it, one driver works in it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from refbert_dist.artifacts import write_json, write_text
from refbert_dist.artifacts.disk import explain_disk_errors
from refbert_dist.config import Experiment, first_difference, load_experiment, to_yaml
from refbert_dist.errors import InUseError, UserError
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.provenance import FILE_NAME, write_provenance

EXPERIMENT = "experiment.yaml"
SEARCH = "search.yaml"
TABLE = "table.yaml"
LOCK = ".lock"

MAY_CHANGE = (
    "run",
    "cache.dir",
    "cache.layers",
    "cache.shard_tokens",
    "cache.batch_tokens",
    "cache.group_processes",
    "cache.staging_dir",
    "cache.staging_gb",
    "corpus.expected_tokens",
    "task.min_teacher_gain",
    "distill.general.until",
    "launch",
    "tracking",
    "engine.zero_stage",
    "engine.precision",
    "engine.timeout_s",
    "engine.max_skipped_steps",
    "engine.compile",
    "engine.profile",
    "engine.prefetch_batches",
    "engine.checkpoint_steps",
    "engine.keep_checkpoints",
    "evaluate.batch_size",
    "export",
    "benchmark",
)
"""Settings that do not change what is computed, or only its rounding, and so may differ when a run is continued."""


@contextlib.contextmanager
def open_run(exp: Experiment) -> Iterator[Path]:
    """Make or continue the run directory; refuse one of another experiment, or one that is in use."""
    run_dir = exp.run.dir
    with explain_disk_errors(run_dir):
        if run_dir.exists() and not run_dir.is_dir():
            raise UserError(f"run.dir is '{run_dir}', which is a file; choose a folder")
        run_dir.mkdir(parents=True, exist_ok=True)
        check_same_experiment(exp)
    with _alone(run_dir):
        write_text(run_dir / EXPERIMENT, to_yaml(exp))
        write_provenance(run_dir)
        yield run_dir


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold a run directory's lock; refuse one that is in use."""
    with explain_disk_errors(run_dir):
        lock = (run_dir / LOCK).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"run.dir '{run_dir}' is in use by another refbert command; wait for it, or choose another run.dir"
            ) from None
        yield


def is_in_use(run_dir: Path) -> bool:
    """Whether a command holds a run directory's lock."""
    try:
        lock = (run_dir / LOCK).open("rb")
    except OSError:
        return False
    with lock:
        try:
            # Shared, because that needs no right to write; it ends with the file.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def explain_other_version(path: Path) -> Iterator[None]:
    """Name the file of a run directory that is refused: not the one who runs a command has written it."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{path} cannot be read by this version of refbert; use the one that wrote it, or another run.dir: {error}"
        ) from None


def stored_experiment(run_dir: Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of a run directory."""
    with explain_other_version(run_dir / EXPERIMENT):
        return load_experiment(run_dir / EXPERIMENT, overrides)


def check_same_experiment(exp: Experiment) -> None:
    """Refuse a run directory that holds another experiment; the message names the first field that differs."""
    if is_table(exp.run.dir):
        raise UserError(f"run.dir '{exp.run.dir}' holds a table; choose another run.dir")
    if (exp.run.dir / EXPERIMENT).exists():
        require_same("experiment", exp.run.dir, stored_experiment(exp.run.dir), exp, MAY_CHANGE)


def take_on(exp: Experiment) -> None:
    """Let a run directory have the systems of ``exp``, if it holds that experiment in all else.

    What it has trained stays, and is not trained again.
    """
    path = exp.run.dir / EXPERIMENT
    if path.exists() and (standing := stored_experiment(exp.run.dir)).systems != exp.systems:
        check_takes_on(standing, exp)
        with _alone(exp.run.dir):
            write_text(path, to_yaml(exp))


def check_takes_on(standing: Experiment, asked: Experiment) -> None:
    """Raise :class:`UserError` unless two experiments of one run directory differ in their systems alone."""
    # A system brings its own rate; that of one that is there stays.
    others = {*standing.systems} ^ {*asked.systems}
    rates = (f"distill.rate_factors.{name}" for name in others)
    require_same("experiment", asked.run.dir, standing, asked, (*MAY_CHANGE, "systems", *rates))


def require_same(what: str, run_dir: Path, standing: BaseModel, asked: BaseModel, may_change: Iterable[str]) -> None:
    """Raise :class:`UserError` with the first field in which what a run directory holds is not what is asked for."""
    difference = first_difference(standing, asked, ignore=may_change)
    if difference:
        name, old, new = difference
        raise UserError(
            f"run.dir '{run_dir}' holds another {what}: {name} is {old!r} there and {new!r} here; choose another "
            f"run.dir, or set {name} back"
        )


def started_in(run_dir: Path) -> Path:
    """The folder that a run was started from last, to which its paths may be relative; the present one if unknown."""
    starts = read_json_or_none(run_dir / FILE_NAME) or [{}]
    folder = Path(starts[-1].get("folder", "."))
    return folder if folder.is_dir() else Path.cwd()


def record_stage(run_dir: Path, stage: str, seconds: float, processes: int, result: dict[str, Any]) -> None:
    """Note in ``RUN_DIR/stages/`` what a finished stage gave and took."""
    record = {
        "stage": stage,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 1),
        "processes": processes,
        "result": result,
    }
    write_json(stage_record(run_dir, stage), record)


def stage_record(run_dir: Path, stage: str) -> Path:
    """The file in which a finished stage is noted."""
    return run_dir / "stages" / f"{stage}.json"


def is_table(run_dir: Path) -> bool:
    """Whether a run directory is that of a table, with its cells below it."""
    return (run_dir / TABLE).exists()


def is_search(run_dir: Path) -> bool:
    """Whether a run directory is that of a search, with runs of other shapes below it."""
    return (run_dir / SEARCH).exists()
