"""Ray on the nodes of a job, for as long as a search needs it: on one machine, or inside an allocation of several.

Every job has its own ports, its own token and its own temporary folders, so that searches of several people, or several
of one, can share nodes. Nothing outlives the processes that called :func:`gathered` and :func:`lend`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from refbert_dist.artifacts import make_folder
from refbert_dist.engine.processes import tied_to_parent
from refbert_dist.engine.stop import StopFlag
from refbert_dist.engine.world import World

OBJECT_STORE_BYTES = 100 * 2**20
"""Only small dictionaries go through it; by default Ray would take a third of the machine's memory."""
MEETING_S = 300.0
"""For all nodes of a job to come together."""
POLL_S = 0.5
PREFIX, LOCK = "refbert-ray-", ".lock"
"""Of the folders for Ray's sockets."""
GRACE_S = 20.0
INVITATION = ".ray-{}.json"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without, anybody who reaches the port could run code as this user.
    "RAY_AUTH_MODE": "token",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Trials are what the machine is there for.
    "RAY_worker_niceness": "0",
    # Ray's own files of trials: nothing reads them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Signals are ours: they make trials save.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@contextlib.contextmanager
def gathered(run_dir: Path, world: World, signals: StopFlag) -> Iterator[None]:
    """Ray over all nodes of the job, started by its first process.

    Raises RuntimeError where nodes stay away.
    """
    token = secrets.token_hex(32)
    os.environ.update(ENVIRONMENT | {"RAY_AUTH_TOKEN": token})
    # Ray reads its environment when it is loaded, which takes seconds besides.
    from tune import driver

    invitation = _invitation(run_dir)
    for left in run_dir.glob(INVITATION.format("*")):
        # By a start whose node has crashed.
        left.unlink()
    with contextlib.ExitStack() as around:
        temporary = around.enter_context(_short_folder())
        with _deaf():
            ray = driver.started(_cores(), OBJECT_STORE_BYTES, temporary, world.size == 1)
            address = around.enter_context(ray)
            # Ray dies of them with a trace of its stack.
            signals.renew()
        try:
            if world.size > 1:
                _write_secret(invitation, json.dumps({"address": address, "token": token}))
                _await_nodes(driver.nodes_alive, world.size)
            yield
        finally:
            invitation.unlink(missing_ok=True)


def lend(run_dir: Path, world: World, signals: StopFlag) -> None:
    """Let the first process of the job run trials on this node until it has no more of them.

    A signal to stop is for the first process to answer; to end with another exit code here would have it killed while
    it puts things in order. Raises RuntimeError where it never called, or where Ray crashed here.
    """
    invitation = _invitation(run_dir)
    with signals.deferred(), _short_folder() as temporary:
        called = json.loads(_read_when_there(invitation))
        words = ["--address", called["address"], "--num-cpus", str(_cores()), "--temp-dir", str(temporary), "--block"]
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
        argv += ["--object-store-memory", str(OBJECT_STORE_BYTES)]
        log = (run_dir / "logs" / f"ray-node-{world.rank}.log").open("wb")
        with log, _deaf():
            process = subprocess.Popen(
                tied_to_parent(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT, "RAY_AUTH_TOKEN": called["token"]},
                start_new_session=True,
            )
        try:
            while invitation.exists() and process.poll() is None:
                time.sleep(POLL_S)
            lost = process.poll() is not None and invitation.exists()
        finally:
            _end(process)
    if lost:
        raise RuntimeError(f"Ray ended on node {world.rank} of the search; see {log.name}")


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started inside never hears that it should stop: Ray's daemons must outlive the saving of their trials.

    SLURM tells all processes of a job at once. For this process the signals are only put off.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cores() -> int:
    """Of this process, as its launcher has said, or else of the machine."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _invitation(run_dir: Path) -> Path:
    """Where the first process says how to join it; another file for each start of the job, on another port."""
    return run_dir / INVITATION.format(os.environ.get("MASTER_PORT", ""))


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """A folder for Ray's sockets, whose paths may have 107 characters; a run directory or TMPDIR can use these up.

    What processes have left there that were killed is removed: they held a lock as long as they lived.
    """
    for left in Path("/tmp").glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), left.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    try:
        with (folder / "new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            Path(lock.name).rename(folder / LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_secret(path: Path, text: str) -> None:
    make_folder(path.parent)
    path.unlink(missing_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600, exist_ok=False)
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def _read_when_there(path: Path) -> str:
    deadline = time.monotonic() + MEETING_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the first node of the search did not call within {MEETING_S:.0f} s; see its log")
        time.sleep(POLL_S)
    return path.read_text(encoding="utf-8")


def _await_nodes(alive: Callable[[], int], count: int) -> None:
    deadline = time.monotonic() + MEETING_S
    while (there := alive()) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {there} of {count} nodes came together within {MEETING_S:.0f} s; see their logs")
        time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
