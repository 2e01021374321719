"""General distillation as a job of two nodes that gets into trouble, and how to tell that nothing was lost."""

from __future__ import annotations

import io
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from tiny import tiny_experiment

from launchers.cluster import scheduler
from launchers.cluster.launch import launch
from launchers.cluster.records import Attempt, attempts, submissions
from launchers.local import local_launcher
from launchers.profile import LocalProfile, SlurmProfile
from launchers.watch.run_status import StageStatus, status
from refbert_dist import pipeline
from refbert_dist.cache.models import general_student, training_record
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.engine.reports import log_path
from refbert_dist.errors import StoppedError
from refbert_dist.rundir import EXPERIMENT

STAGE = "distill-general"
FIRST_STEPS = 120
LEAST_S = 8.0
"""A training must last while several troubles befall it, and not take much longer than that."""
PATIENCE_S = 120.0
POLL_INTERVAL_S = 0.1
TASK = "^[^ ]*/python[^ ]* -u -m submitit"
"""Command line of a process that srun has started; srun's own begins with its name."""


def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait for something, and give it."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(POLL_INTERVAL_S)
    return found


def submit(exp: Experiment, *targets: str, **fields: Any) -> str:
    """Launch on two nodes of one process each; returns what a person is told."""
    profile = SlurmProfile(**{"cluster": "slurm", "partition": "main", "nodes": 2, "memory_gb": 1, **fields})
    told = io.StringIO()
    launch(exp, targets, profile, Console(file=told, width=160))
    return told.getvalue()


def job_ids(exp: Experiment) -> dict[str, str]:
    """The job or array that each stage was submitted as last."""
    return {name: submission.job_id for name, submission in submissions(exp.run.dir).items()}


def await_ends(exp: Experiment) -> None:
    """Until no job of a run is left."""
    until(lambda: not scheduler.queued(job_ids(exp).values()), "the end of all jobs")


def stage_status(exp: Experiment, stage: str = STAGE) -> StageStatus:
    """What a person is told of a stage."""
    return next(found for found in status(exp.run.dir).stages if found.name == stage)


def nodes_of(sandbox: Any, job_id: str) -> list[str]:
    """Nodes of a running job, in the order of its processes."""
    listed = sandbox.sh("squeue", "--noheader", "--format=%N", f"--jobs={job_id}")
    return sandbox.sh("scontrol", "show", "hostnames", listed).split()


def pid_on(sandbox: Any, node: str) -> str:
    """Of the only process of a job on a node, as the node counts; "" if there is none."""
    return sandbox.exec(node, "sh", "-c", f"pgrep -f '{TASK}' || true")


def weights(exp: Experiment) -> bytes:
    """Of the student that general distillation has left."""
    return (general_student(exp, "refbert") / "model.safetensors").read_bytes()


@dataclass(frozen=True)
class Origin:
    """A tiny experiment that is done up to general distillation, and the student that comes of it undisturbed."""

    exp: Experiment
    student: bytes

    @classmethod
    def make(cls, root: Path) -> Origin:
        """Run it on this machine; the copies for the jobs are without the student."""
        steps, seconds = FIRST_STEPS, 0.0
        while seconds < LEAST_S:
            exp = tiny_experiment(
                root, "systems=[refbert]", f"distill.general.steps={steps}", "engine.checkpoint_steps=100000"
            )
            shutil.rmtree(exp.run.dir, ignore_errors=True)
            pipeline.run(exp, ["retrieve", "cache-general"])
            alone = cls(exp, b"").copy(root / f"alone-{steps}")
            pipeline.run(alone, [STAGE], local_launcher(LocalProfile(processes=2, threads=1)))
            seconds = training_record(general_student(alone, "refbert"))["seconds"]
            steps = math.ceil(steps * 1.5 * LEAST_S / seconds)
        return cls(exp, weights(alone))

    @property
    def steps(self) -> int:
        """Of general distillation."""
        return self.exp.distill.general.steps or 0

    def copy(self, root: Path, *overrides: str) -> Experiment:
        """The same experiment in folders of its own."""
        shutil.copytree(self.exp.cache.dir, root / "cache")
        folders = (f"run.dir={root / 'run'}", f"cache.dir={root / 'cache'}")
        return load_experiment(self.exp.run.dir / EXPERIMENT, [*folders, *overrides])


class Survivor:
    """The job of a copy, and one that waits for it as every later stage of a run does."""

    def __init__(self, sandbox: Any, origin: Origin, root: Path, *overrides: str, **fields: Any) -> None:
        self.sandbox = sandbox
        self.origin = origin
        self.exp = origin.copy(root, *overrides)
        self.fields = fields
        self.submit()

    def submit(self) -> None:
        """Once more when it has ended, it is another job."""
        submit(self.exp, STAGE, **self.fields)
        self.job_id = job_ids(self.exp)[STAGE]
        self.next_id = self.sandbox.sh(
            *("sbatch", "--parsable", f"--dependency=afterok:{self.job_id}", "--kill-on-invalid-dep=yes"),
            *("--output=/dev/null", "--wrap=true"),
        )

    # -- what it does --------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Those that have been recorded, in order; what was done twice is there twice."""
        path = self.exp.run.dir / "metrics.jsonl"
        return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []

    def await_training(self, start: int = 0) -> None:
        """Wait until this start of the job is training."""
        until(lambda: self._hurried() and len(self.starts()) > start, f"start {start} of the job")
        before = len(self.steps())
        until(lambda: len(self.steps()) > before + 2, "steps")

    def starts(self) -> list[Attempt]:
        """Of the job that was submitted last."""
        return attempts(self.exp.run.dir, self.job_id)

    def checkpoints(self) -> list[str]:
        """Names of the complete ones."""
        return sorted(path.parent.name for path in (self.exp.run.dir / "checkpoints").glob("*/step-*/COMPLETE"))

    # -- where it is ---------------------------------------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """In the order of its processes."""
        return nodes_of(self.sandbox, self.job_id)

    def pid(self, node: str) -> str:
        """Of the process on a node, as the node counts; "" if there is none."""
        return pid_on(self.sandbox, node)

    def signal(self, node: str, name: str) -> None:
        """Send a signal to the process on a node."""
        self.sandbox.exec(node, "kill", f"-{name}", self.pid(node))

    def signal_script(self, node: str, name: str) -> None:
        """Send a signal to the batch script, which runs on the first node."""
        self.sandbox.exec(node, "sh", "-c", f"kill -{name} $(pgrep -f '[s]lurm_script')")

    def signal_while_saving(self, name: str) -> None:
        """Send a signal to the first process as soon as there is a checkpoint that is not whole yet."""
        first = self.nodes()[0]
        unfinished = f"{self.exp.run.dir}/checkpoints/*/.step-*"
        wait = f"until compgen -G '{unfinished}'; do :; done; kill -{name} {self.pid(first)}"
        self.sandbox.exec(first, "timeout", "10", "bash", "-c", wait)

    # -- what befalls it -----------------------------------------------------------------------------------------------

    def endure(self, troubles: Mapping[str, Callable[[Survivor], object]]) -> None:
        """Let one after the other befall it, each of which ends a start of the job while it is training."""
        for start, befall in enumerate(troubles.values()):
            self.await_training(start)
            befall(self)

    def halt(self) -> None:
        """Keep it from getting any further, until SLURM ends it: it sends SIGCONT before whatever else."""
        self.signal(self.nodes()[1], "STOP")

    def limit(self, minutes: int) -> None:
        """Change the time limit of the job, which is counted from its last start."""
        self.sandbox.sh("scontrol", "update", f"jobid={self.job_id}", f"timelimit={minutes}")

    # -- how it ends ---------------------------------------------------------------------------------------------------

    def await_end(self) -> None:
        """Until SLURM has ended it."""
        until(lambda: not self._hurried(), "the end of the job")

    def _hurried(self) -> bool:
        """Whether SLURM still has it. The wait of a job that is queued again is made shorter."""
        found = scheduler.queued([self.job_id])
        if found and found[self.job_id].reason == "BeginTime":
            # In the same second the nodes would refuse it.
            self.sandbox.sh("scontrol", "update", f"jobid={self.job_id}", "starttime=now+2seconds", check=False)
        return bool(found)

    def assert_unharmed(self, endings: Mapping[str, int | None] | None = None, *, steps_lost: bool = False) -> None:
        """The stage is done as if nothing had been, and every start but the first went on from where it was.

        Args:
            endings: what has befallen it, and with which exit code each start but the last ended for it; None where it
                could not tell.
            steps_lost: whether steps may have been done twice.
        """
        self.await_end()
        assert weights(self.exp) == self.origin.student
        wanted = [*(endings or {}).items(), (None, 0)]
        assert list(zip_longest(endings or {}, (start.exit_code for start in self.starts()))) == wanted
        began, *later = log_path(self.exp.run.dir, STAGE, 0).read_text().split("=== ")[1:]
        assert "continues" not in began
        for log in later:
            assert 0 < int(log.partition("continues from step ")[2].split()[0]) < self.origin.steps
        assert steps_lost or self.steps() == list(range(1, self.origin.steps + 1))
        assert self.checkpoints() == [f"step-{self.origin.steps}"]
        until(lambda: self.sandbox.sacct(self.next_id) == "COMPLETED", "the job after it")


STOPPED = StoppedError.exit_code
CRASHED = None
