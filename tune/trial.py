"""One trial up to a rung, in a process of its own: ``python -m tune.trial RUN_DIR NUMBER SHARE``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.config import Experiment
from refbert_dist.engine.processes import run_processes
from refbert_dist.errors import UserError
from refbert_dist.local import in_processes
from refbert_dist.rundir import started_in
from refbert_dist.worker import leave_mlflow_out, run_alone, run_here
from tune.config import Search, stored_search
from tune.figures import Figures
from tune.records import read_trial, trial_folder
from tune.space import trial_experiment

STAGE = "trial"
"""Name of its logs."""
OWN = ("distill-general", "distill-task", "evaluate")
"""Stages of a trial; all others are shared."""


def rung_folder(folder: Path, share: float) -> Path:
    """The run directory of the task stage at a rung: the trial's own at its end, one below it before."""
    return folder if share == 1.0 else folder / "rungs" / f"{share:g}"


def experiments(search: Search, run_dir: Path, number: int, share: float) -> tuple[Experiment, Experiment]:
    """The runs that bring a trial to a rung: its general stage, which later rungs continue, and its task stage."""
    folder = trial_folder(run_dir, number)
    point = read_trial(run_dir, number).point
    return (
        trial_experiment(search, point, folder, share),
        trial_experiment(search, point, rung_folder(folder, share), share),
    )


def run(run_dir: Path, number: int, share: float) -> None:
    """Bring a trial to a rung; what is there already is not done again.

    Raises UserError where something is not there that all trials share: one trial must not make it for itself.
    """
    general, task = experiments(stored_search(run_dir), run_dir, number, share)
    absent = [stage.name for stage in pipeline.missing_stages(task, OWN) if stage.name not in OWN]
    if absent:
        raise UserError(
            f"cache.dir '{task.cache.dir}' lacks what {', '.join(absent)} made for all trials; if every node sees this "
            "folder, run the search again, which makes what is missing"
        )
    # One process does all stages itself and loads the libraries once; several have to find each other for each stage.
    launch = run_alone if general.launch.processes == 1 else in_processes()
    if general.run.dir != task.run.dir:
        pipeline.run(general, ["distill-general"], launch)
    pipeline.run(task, ["evaluate"], launch)


def bring(run_dir: Path, number: int, share: float, threads: int) -> None:
    """As :func:`run`, in a process of its own with so many threads. Raises as :func:`run_processes`."""
    # Ray has its workers change to folders of their own, where relative paths would lead nowhere.
    with contextlib.chdir(started_in(run_dir)):
        run_processes(
            [sys.executable, "-m", "tune.trial", str(run_dir), str(number), str(share)],
            count=1,
            threads=threads,
            run_dir=trial_folder(run_dir, number),
            stage=STAGE,
        )


def figures(run_dir: Path, number: int, share: float) -> Figures:
    """What a trial has come to at a rung, from what its run has left."""
    folder = rung_folder(trial_folder(run_dir, number), share)
    rows: list[dict[str, Any]] = [row for row in read_json(folder / "results.json") if row["system"] != "teacher"]
    return {
        **{row["metric"]: row["score"] for row in rows},
        "seconds": rows[0]["seconds"],
        "teacher_samples": float(teacher_samples(trial_folder(run_dir, number))),
    }


def teacher_samples(folder: Path) -> int:
    """Samples that the stages of a run, and of the rungs below it, have run the teacher on."""
    stages = [*folder.glob("stages/*.json"), *folder.glob("rungs/*/stages/*.json")]
    return sum(read_json(path)["result"].get("teacher_samples", 0) for path in stages)


if __name__ == "__main__":
    leave_mlflow_out()
    sys.exit(
        run_here(
            trial_folder(Path(sys.argv[1]), int(sys.argv[2])),
            STAGE,
            lambda: run(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])),
        )
    )
