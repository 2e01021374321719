"""Workers of a cache build, as ``refbert`` starts them, but forked from a process that has imported the heavy packages:
so they begin in a moment instead of some five seconds, and many can be killed.
"""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from refbert_dist.engine.processes import worker_environment
from refbert_dist.engine.world import World, free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["deepspeed", "refbert_dist.worker", "refbert_dist.stages.cache", "transformers.models.bert"]
)


def start(run_dir: Path, group: int) -> ForkServerProcess:
    """An independent group of one process."""
    variables = worker_environment(World(0, 1, group, group, 2), 2, free_port(), threads=1)
    worker = SERVER.Process(target=_run, args=(run_dir, variables), daemon=True)
    worker.start()
    return worker


def _run(run_dir: Path, variables: dict[str, str]) -> None:
    with (run_dir / "workers.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(variables)
    from refbert_dist.config import load_experiment
    from refbert_dist.pipeline import stage_named
    from refbert_dist.worker import run_stage

    sys.exit(run_stage(stage_named("cache-general"), load_experiment(run_dir / "experiment.yaml")))
