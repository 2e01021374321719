"""One process of a stage: ``python -m refbert_dist.worker STAGE RUN_DIR``, its rank in the environment."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from refbert_dist.artifacts.disk import explain_disk_errors
from refbert_dist.config import load_experiment
from refbert_dist.engine.processes import report_error
from refbert_dist.engine.world import World
from refbert_dist.errors import RefBertError
from refbert_dist.pipeline import stage_named
from refbert_dist.rundir import EXPERIMENT
from refbert_dist.tracking.quiet import quiet_libraries

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def main(stage_name: str, run_dir: Path) -> int:
    """Run the stage of the experiment in ``run_dir``; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stdout)
    quiet_libraries()
    try:
        with explain_disk_errors(run_dir):
            stage_named(stage_name).run(load_experiment(run_dir / EXPERIMENT))
    except RefBertError as error:
        report_error(run_dir, stage_name, World.from_environment().number, error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
