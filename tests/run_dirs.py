"""Run directories as runs leave them: prepared, submitted, started, failed."""

import contextlib
import shutil
import sys
import time
from pathlib import Path

from tiny import tiny_experiment

from launchers.cluster.records import Attempt, Submission, add_attempt, add_submissions
from launchers.watch.run_status import status
from refbert_dist import pipeline
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.engine.processes import run_processes
from refbert_dist.errors import RefBertError


def prepared_run(base: Path, run_dir: Path) -> Experiment:
    """A run that was prepared and nothing more; what all share is made once, under ``base``."""
    root = base / "prepared"
    if not root.exists():
        pipeline.run(tiny_experiment(root, "corpus.max_documents=4"), ["prepare"])
    exp = tiny_experiment(root, "corpus.max_documents=4", f"run.dir={run_dir}")
    shutil.copytree(root / "run", run_dir)
    (run_dir / "experiment.yaml").write_text(to_yaml(exp))
    return exp


def processes(exp: Experiment, stage: str, code: str, count: int = 2) -> None:
    """Real processes of a stage, running other code."""
    with contextlib.suppress(RefBertError):
        run_processes([sys.executable, "-c", code], count=count, threads=1, run_dir=exp.run.dir, stage=stage)


def submit(
    exp: Experiment, stage: str, job_id: str = "7", elements: int = 1, after: tuple[str, ...] = ()
) -> Submission:
    """Note that a stage was submitted a minute ago, as jobs of two processes."""
    submission = Submission(stage, job_id, elements, 1, 2, after, time.time() - 60)
    add_submissions(exp.run.dir, [submission])
    return submission


def start(exp: Experiment, job_id: str = "7", code: int | None = None) -> None:
    """Note a start, and with ``code`` its end."""
    at = time.time() - 50
    ended = None if code is None else at + 5
    add_attempt(exp.run.dir, Attempt(job_id, 0, "n3", at, "", ended, code))


def states(exp: Experiment) -> dict[str, str]:
    """Of every stage."""
    return {stage.name: stage.state for stage in status(exp.run.dir).stages}


def message(exp: Experiment, stage: str) -> str:
    """What is said of a stage."""
    (found,) = (each.message for each in status(exp.run.dir).stages if each.name == stage)
    return found or ""
