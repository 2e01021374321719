"""Start stages on this machine."""

from __future__ import annotations

import sys

from launchers.profile import LocalProfile
from refbert_dist.config import Experiment
from refbert_dist.engine.processes import run_processes
from refbert_dist.pipeline import Launch, Stage, in_this_process
from refbert_dist.rundir import EXPERIMENT


def local_launcher(profile: LocalProfile) -> Launch:
    """Every stage runs in processes of its own: memory is given back, and a crash takes nothing with it."""

    def launch(stage: Stage, exp: Experiment) -> None:
        processes = (profile.processes or exp.launch.processes) if stage.workers != "one" else 1
        run_processes(
            [sys.executable, "-m", "refbert_dist.worker", stage.name, str(exp.run.dir / EXPERIMENT)],
            count=processes,
            threads=profile.threads or exp.launch.threads,
            run_dir=exp.run.dir,
            stage=stage.name,
            group_size=stage.group_size(exp),
            environment=profile.environment,
        )

    return in_this_process if profile.cluster == "in-process" else launch
