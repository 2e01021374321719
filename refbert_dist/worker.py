"""One process of a stage: ``python -m refbert_dist.worker STAGE EXPERIMENT.yaml``, its rank in the environment."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from refbert_dist.artifacts.disk import explain_disk_errors
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.engine.reports import report_error
from refbert_dist.engine.stop import watching_signals
from refbert_dist.engine.world import World
from refbert_dist.errors import RefBertError
from refbert_dist.pipeline import Stage, stage_named
from refbert_dist.tracking.quiet import quiet_libraries

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def run_alone(stage: Stage, exp: Experiment) -> None:
    """Run a stage in a process that was started for it, and so may keep for ever whatever it has loaded.

    The libraries make half a million objects that stay. Looking for garbage among them while they come, and once more
    when the process ends, would take a third of its start.
    """
    gc.disable()
    importlib.import_module(stage.entry.partition(":")[0])
    gc.freeze()
    gc.enable()
    stage.run(exp)


def run_stage(stage: Stage, exp: Experiment, work: Callable[[Stage, Experiment], object] = run_alone) -> int:
    """Do this process's part of a stage; an error that explains itself is reported. Returns the exit code."""
    return run_here(exp.run.dir, stage.name, lambda: work(stage, exp))


def run_here(run_dir: Path, name: str, work: Callable[[], object]) -> int:
    """Do some work of a run in this process, with logging and signals as every worker has them.

    An error that explains itself is reported under ``name`` in the run's logs. Returns the exit code.
    """
    logging.basicConfig(
        level=logging.INFO, format=LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stdout, force=True
    )
    quiet_libraries()
    try:
        with explain_disk_errors(run_dir), watching_signals():
            work()
    except RefBertError as error:
        report_error(run_dir, name, World.from_environment().number, error)
        return error.exit_code
    return 0


def leave_mlflow_out() -> None:
    """Have nothing in this process import MLflow: whoever started it copies its records there.

    DeepSpeed would import it for its autotuner, in a tenth of a start.
    """
    sys.modules["mlflow"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    leave_mlflow_out()
    sys.exit(run_stage(stage_named(sys.argv[1]), load_experiment(Path(sys.argv[2]))))
