"""What runs on the nodes: one process of a stage, started by srun, its place told by SLURM's variables."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launchers.cluster.batch import again, hostnames
from launchers.cluster.records import Attempt, add_attempt, attempts, now
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.engine.processes import has_cuda_device
from refbert_dist.engine.reports import error_path, log_path, open_log
from refbert_dist.engine.stop import ignore_signals, watching_signals
from refbert_dist.engine.world import GROUP, GROUPS, RENDEZVOUS_PORTS, World, free_port, rendezvous
from refbert_dist.errors import RefusedError, StoppedError
from refbert_dist.pipeline import Stage, advance, missing_stages, require_result, stage_named, tracking
from refbert_dist.worker import run_alone, run_stage

SHARED_DISK_LAG_S = 60.0
"""A network file system may show what another node has written only after so long."""
LOOK_INTERVAL_S = 2.0
FRUITLESS_STOPS = 10
"""Starts in a row that were stopped on purpose before they got any further."""


@dataclass(frozen=True)
class Place:
    """Where SLURM has put this process."""

    job_id: str
    """As SLURM shows it: ``123``, or ``123_4`` for job 4 of an array."""
    number: int
    """Among the processes of the job."""
    attempt: int
    """0 at the first start of the job."""
    port: int
    """Base of the job's rendezvous ports: another one for each job and each start of it."""
    world: World

    @classmethod
    def from_environment(cls, group_size: int | None, environment: Mapping[str, str] = os.environ) -> Place:
        """Read it from SLURM's variables. ``group_size``: processes of an independent group; None: all are one."""
        get = environment.get
        processes, number = int(environment["SLURM_NTASKS"]), int(environment["SLURM_PROCID"])
        element, elements = int(get("SLURM_ARRAY_TASK_ID", "0")), int(get("SLURM_ARRAY_TASK_COUNT", "1"))
        size = group_size or processes
        world = World(
            rank=number % size,
            size=size,
            local_rank=int(environment["SLURM_LOCALID"]),
            group=element * (processes // size) + number // size,
            groups=elements * (processes // size),
        )
        array, attempt = get("SLURM_ARRAY_JOB_ID"), int(get("SLURM_RESTART_COUNT", "0"))
        return cls(
            job_id=f"{array}_{element}" if array else environment["SLURM_JOB_ID"],
            number=number,
            attempt=attempt,
            port=int(environment["SLURM_JOB_ID"]) * 61 + attempt * 1009,
            world=world,
        )

    def rendezvous(self, hosts: Sequence[str], processes: int) -> dict[str, str]:
        """Variables by which the processes of this one's world find each other."""
        world = self.world
        if world.size == 1:
            return rendezvous(world.rank, world.size, free_port(), world.local_rank)
        first = self.number - world.rank
        port = RENDEZVOUS_PORTS[(self.port + first) % len(RENDEZVOUS_PORTS)]
        return rendezvous(world.rank, world.size, port, world.local_rank, hosts[first * len(hosts) // processes])


@dataclass(frozen=True)
class StageJob:
    """One stage of a run, as it is submitted: only names of files, so that every start reads what is there then."""

    stage: str
    experiment: str
    """The settings at submission."""
    restarts: int
    """Crashes in a row without any advance after which the job gives up."""

    def __call__(self, _element: int) -> int:
        """Run this process's part; ends the process with the exit code unless that is 0."""
        with watching_signals():
            stage, exp = stage_named(self.stage), load_experiment(self.experiment)
            place = Place.from_environment(stage.group_size(exp))
            code = self._run(stage, exp, place)
        ignore_signals()
        if code:
            # An exception would be stored by submitit as the job's result, which it is not: the job may go on later.
            sys.exit(code)
        return code

    def checkpoint(self, element: int) -> Any:
        """For a signal that comes before this process is ready: submitit queues the job again, unchanged."""
        return again(self, [element])

    def _run(self, stage: Stage, exp: Experiment, place: Place) -> int:
        world = place.world
        hosts = hostnames()
        os.environ.update(place.rendezvous(hosts, int(os.environ["SLURM_NTASKS"])))
        os.environ.update({GROUP: str(world.group), GROUPS: str(world.groups)})
        if not has_cuda_device():
            os.environ["DS_ACCELERATOR"] = "cpu"
        error_path(exp.run.dir, stage.name, world.number).unlink(missing_ok=True)
        what = f"process {world.number}: job {place.job_id}, start {place.attempt + 1}, on {socket.gethostname()}"
        with _output_to(log_path(exp.run.dir, stage.name, world.number), what):
            try:
                return run_stage(stage, exp, lambda stage, exp: self._work(stage, exp, place))
            except Exception:
                # The end of another process may be the cause, and then SLURM tells this one to stop just now.
                with watching_signals() as signals, signals.deferred():
                    traceback.print_exc()
                return os.EX_SOFTWARE

    def _work(self, stage: Stage, exp: Experiment, place: Place) -> None:
        with contextlib.ExitStack() as around:
            # Stages of groups may run beside each other, and only one process may copy at a time.
            if place.world.is_main and stage.workers != "groups":
                around.enter_context(tracking(exp))
            if place.number == 0:
                around.enter_context(self._noted(stage, exp, place))
            _await_needs(stage, exp)
            run_alone(stage, exp)
            if place.world.rank == 0:
                require_result(stage, exp)

    @contextlib.contextmanager
    def _noted(self, stage: Stage, exp: Experiment, place: Place) -> Iterator[None]:
        """Keep record of this start; refuse one more that would get no further than those before."""
        before = attempts(exp.run.dir, place.job_id)
        attempt = Attempt(place.job_id, place.attempt, socket.gethostname(), now(), advance(stage, exp))
        add_attempt(exp.run.dir, attempt)
        require_advance(stage, [*before, attempt], self.restarts)
        try:
            yield
        except StoppedError:
            add_attempt(exp.run.dir, replace(attempt, ended_at=now(), exit_code=StoppedError.exit_code))
            raise
        add_attempt(exp.run.dir, replace(attempt, ended_at=now(), exit_code=0))


def require_advance(stage: Stage, starts: Sequence[Attempt], restarts: int) -> None:
    """Raise :class:`RefusedError` when the last of these starts finds the stage where too many before have left it."""
    *before, latest = starts
    stopped = crashed = 0
    for attempt in reversed(before):
        if attempt.advance != latest.advance:
            break
        stopped += attempt.exit_code == StoppedError.exit_code
        crashed += attempt.exit_code != StoppedError.exit_code
    if crashed > restarts:
        often = "once" if crashed == 1 else f"{crashed} times in a row"
        raise RefusedError(
            f"{stage.name} has crashed {often} without getting any further, so it is not started again; mend the cause "
            "that its log shows, then refbert resume"
        )
    if stopped > FRUITLESS_STOPS:
        raise RefusedError(
            f"{stage.name} was stopped {stopped} times in a row before it got any further; give it more time (time_min "
            "of the profile) or less to do between two savings (engine.checkpoint_steps, cache.shard_tokens)"
        )


def _await_needs(stage: Stage, exp: Experiment) -> None:
    deadline = time.monotonic() + SHARED_DISK_LAG_S
    while missing := [found.name for found in missing_stages(exp, [stage.name]) if found.name != stage.name]:
        if time.monotonic() > deadline:
            raise RefusedError(f"{stage.name} cannot start, because {' and '.join(missing)} did not finish")
        time.sleep(LOOK_INTERVAL_S)


@contextlib.contextmanager
def _output_to(path: Path, what: str) -> Iterator[None]:
    """Send what this process writes, C libraries included, to the end of a log."""
    kept = [os.dup(stream) for stream in (1, 2)]
    sys.stdout.flush()
    sys.stderr.flush()
    with open_log(path, what) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)
