"""Processes of a job as ``refbert`` starts them, but forked from one that has imported the heavy packages.

They begin in a moment instead of some seconds.
"""

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

from refbert_dist.engine.processes import library_environment, worker_environment
from refbert_dist.engine.world import World, free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("deepspeed", "transformers.models.bert", "refbert_dist.models.teacher", "refbert_dist.worker"),
        *("refbert_dist.stages.prepare", "refbert_dist.stages.cache", "refbert_dist.stages.distill"),
    ]
)
POLL_INTERVAL_S = 0.01


def start(world: World, port: int, log: Path, work: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Begin ``work(*arguments)`` in a process at its place in the world; it has one thread, and appends to ``log``."""
    variables = worker_environment(world, world.size * world.groups, port, threads=1)
    with mock.patch.dict(os.environ, library_environment(threads=1)):
        forkserver.ensure_running()  # What libraries read when they are loaded must be there before.
    process = SERVER.Process(target=_work, args=(variables, log, work, *arguments), daemon=True)
    process.start()
    return process


def run(count: int, logs: Path, work: Callable[..., object], *arguments: object, group_size: int | None = None) -> None:
    """Do it in ``count`` processes, one world or groups of ``group_size``; their output goes to ``logs/0.log``, ..."""
    size = group_size or count
    logs.mkdir(parents=True, exist_ok=True)
    worlds = [World(number % size, size, number, number // size, count // size) for number in range(count)]
    ports = [free_port() for _ in range(count // size)]
    running = [start(world, ports[world.group], logs / f"{world.number}.log", work, *arguments) for world in worlds]
    try:
        while any(process.is_alive() for process in running):
            for process, world in zip(running, worlds, strict=True):
                assert not process.exitcode, (logs / f"{world.number}.log").read_text()
            time.sleep(POLL_INTERVAL_S)
        assert [process.exitcode for process in running] == [0] * count, logs
    finally:
        for process in running:
            process.kill()


def stage(name: str, run_dir: Path) -> None:
    """Work: this process's part of a stage, by what a worker does."""
    from refbert_dist.config import load_experiment
    from refbert_dist.pipeline import stage_named
    from refbert_dist.worker import run_stage

    sys.exit(run_stage(stage_named(name), load_experiment(run_dir / "experiment.yaml")))


def _work(variables: dict[str, str], log: Path, work: Callable[..., object], *arguments: object) -> None:
    gc.freeze()
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(variables)
    work(*arguments)
