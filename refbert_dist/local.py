"""Start stages on this machine, each in processes of its own: memory is given back, a crash takes nothing with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from refbert_dist.config import Experiment
from refbert_dist.engine.processes import run_processes
from refbert_dist.pipeline import Launch, Stage
from refbert_dist.rundir import EXPERIMENT


def in_processes(
    processes: int | None = None, threads: int | None = None, environment: Mapping[str, str] | None = None
) -> Launch:
    """A launcher of local processes; numbers that are given count instead of the experiment's."""

    def launch(stage: Stage, exp: Experiment) -> None:
        run_processes(
            [sys.executable, "-m", "refbert_dist.worker", stage.name, str(exp.run.dir / EXPERIMENT)],
            count=(processes or exp.launch.processes) if stage.workers in ("world", "groups") else 1,
            threads=threads or exp.launch.threads,
            run_dir=exp.run.dir,
            stage=stage.name,
            group_size=stage.group_size(exp),
            environment=environment,
        )

    return launch
