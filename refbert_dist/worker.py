"""One process of a stage: ``python -m refbert_dist.worker STAGE EXPERIMENT.yaml``, its rank in the environment."""

from __future__ import annotations

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


def run_stage(stage: Stage, exp: Experiment, work: Callable[[Stage, Experiment], object] = Stage.run) -> int:
    """Do this process's part of a stage; an error that explains itself is reported. Returns the exit code."""
    logging.basicConfig(
        level=logging.INFO, format=LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stdout, force=True
    )
    quiet_libraries()
    try:
        with explain_disk_errors(exp.run.dir), watching_signals():
            work(stage, exp)
    except RefBertError as error:
        report_error(exp.run.dir, stage.name, World.from_environment().number, error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run_stage(stage_named(sys.argv[1]), load_experiment(Path(sys.argv[2]))))
