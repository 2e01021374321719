"""Local worker processes: started together, watched together, ended together, whatever happens to any of them.

Processes of one world need each other: when one fails, all end. Groups do not: what a crashed group leaves undone, the
others do, and only a failure that a worker explains (wrong input, a full disk) ends them all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from refbert_dist.artifacts import read_json
from refbert_dist.engine.reports import error_path, log_path, open_log
from refbert_dist.engine.world import GROUP, GROUPS, World, free_port, rendezvous
from refbert_dist.errors import RefBertError, RefusedError, StoppedError, UserError
from refbert_dist.tracking.progress import show

POLL_INTERVAL_S = 0.1
FAILURE_GRACE_S = 5.0
"""After one process failed: time from SIGTERM to SIGKILL of the others, which can do nothing useful without it."""
STOP_GRACE_S = 60.0
"""After a stop was asked for: time to finish the step and save a checkpoint. A second signal ends the wait."""
TAIL_LINES = 15

STOPPED_MESSAGE = "stopped; run the same command again to continue"

# The kernel kills a worker when its parent dies, also by SIGKILL, so none is ever left over. The order is given by a
# small program that then becomes the worker, because Python code between fork and exec may deadlock when the parent has
# threads, and ours has one for MLflow. A parent that died before the order took effect is seen by its changed id.
TIE_TO_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Worker:
    number: int
    group: int
    process: subprocess.Popen[bytes]
    log: Path

    def status(self) -> int | None:
        """Exit status, minus the signal's number if one ended it, None while it runs.

        The process is left unreaped, so that its id stays its own until :meth:`kill` has used it.
        """
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def kill(self) -> None:
        """End the process and all that it started in its session, and reap it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_processes(
    argv: Sequence[str],
    *,
    count: int,
    threads: int | None,
    run_dir: Path | str,
    stage: str,
    group_size: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run ``count`` processes of the program ``argv`` on this machine to their end; returns 0.

    Args:
        argv: program and arguments, the same for every process; their rank is in the environment.
        count: processes.
        threads: CPU threads of each; None shares the cores evenly.
        run_dir: its ``logs`` folder gets their output.
        stage: names the log files.
        group_size: processes of an independent group; None: all are one world.
        environment: variables to set beside those of this process and of :func:`worker_environment`.

    Raises:
        UserError, RefusedError, StoppedError: as a worker reported it.
        RefusedError: a worker crashed without a report; the end of its log is logged.
        StoppedError: this process got SIGINT or SIGTERM; the workers had time to save.
    """
    size = group_size or count
    if count % size:
        raise UserError(
            f"launch.processes is {count}, which groups of {size} processes (cache.group_processes) do not divide; "
            f"set launch.processes={count // size * size or size}"
        )
    logs = Path(run_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for stale in logs.glob(f"{stage}-rank*.error.json"):
        stale.unlink()
    ports = [free_port() for _ in range(count // size)]
    workers: list[_Worker] = []
    with _stop_signals() as received, show(run_dir, stage, log_path(run_dir, stage, 0)) as refresh:
        try:
            for number in range(count):
                world = World(number % size, size, number, number // size, len(ports))
                variables = worker_environment(world, count, ports[world.group], threads) | dict(environment or {})
                workers.append(_start(argv, world, variables, log_path(run_dir, stage, number)))
            failed = _watch(workers, received, refresh, lambda: _explained(run_dir, stage, count))
            running = any(worker.status() is None for worker in workers)
            if running:
                _ask_to_end(workers, FAILURE_GRACE_S if failed else STOP_GRACE_S, received, refresh)
        finally:
            for worker in workers:
                worker.kill()
    if received:
        raise StoppedError(STOPPED_MESSAGE)
    if failed:
        if running or len({worker.group for worker in workers if worker.number in failed}) == len(ports):
            raise _explain(run_dir, stage, failed, count)
        for number, status in failed.items():
            logger.warning(
                "process %d of stage %s was lost (%s); the others did its work", number, stage, _ending(status)
            )
    return 0


def worker_environment(world: World, count: int, port: int, threads: int | None) -> dict[str, str]:
    """Variables of one of ``count`` local workers: its place, its share of the cores, unbuffered output."""
    share = threads or max(1, len(os.sched_getaffinity(0)) // count)
    variables = rendezvous(world.rank, world.size, port, local_rank=world.local_rank) | {
        GROUP: str(world.group),
        GROUPS: str(world.groups),
    }
    variables |= library_environment(share)
    if not has_cuda_device():
        variables["DS_ACCELERATOR"] = "cpu"
    return variables


def library_environment(threads: int) -> dict[str, str]:
    """What the libraries of a process that has so many cores must know before they are loaded."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # A training pass on a CPU sets aside the gradient of all word embeddings anew. By default each is mapped and
        # given back, and its pages are faulted in one by one: a quarter of a short step. This keeps freed memory.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
    }


def has_cuda_device() -> bool:
    """True where the NVIDIA driver is loaded and not hidden; costs nothing, unlike asking torch."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def tied_to_parent(argv: Sequence[str]) -> list[str]:
    """The command by which a program is started that the kernel kills when the thread that started it ends."""
    return [sys.executable, "-I", "-S", "-c", TIE_TO_PARENT, str(os.getpid()), *argv]


def _explained(run_dir: Path | str, stage: str, count: int) -> bool:
    """Whether a worker has left the reason of its failure: then it would happen to the others as well."""
    return any(error_path(run_dir, stage, number).exists() for number in range(count))


def _start(argv: Sequence[str], world: World, variables: Mapping[str, str], log: Path) -> _Worker:
    with open_log(log, f"process {world.number}: {shlex.join(argv)}") as output:
        process = subprocess.Popen(
            tied_to_parent(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            # Its own session: Ctrl-C reaches only the parent, and a kill reaches what the worker itself has started.
            start_new_session=True,
        )
    return _Worker(world.number, world.group, process, log)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them."""
    received: list[int] = []

    def collect(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only and refuses handlers elsewhere.
        yield received
        return
    before = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    # Whoever started this process may have blocked them: what inherits that is deaf.
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
    try:
        yield received
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    workers: Sequence[_Worker], received: Sequence[int], refresh: Callable[[], None], explained: Callable[[], bool]
) -> dict[int, int]:
    """Wait for the end of all, a signal, or a failure that ends all; gives number -> status of those that failed."""
    groups = {worker.group for worker in workers}
    while True:
        statuses = {worker.number: worker.status() for worker in workers}
        failed = {number: status for number, status in statuses.items() if status}
        if received or all(status is not None for status in statuses.values()):
            return failed
        if failed and (len(groups) == 1 or explained()):
            return failed
        lost = {worker.group for worker in workers if worker.number in failed}
        for worker in workers:
            if worker.group in lost and statuses[worker.number] is None:
                worker.process.kill()  # It would wait for its lost mate in the next collective.
        refresh()
        time.sleep(POLL_INTERVAL_S)


def _ask_to_end(
    workers: Sequence[_Worker], grace_s: float, received: Sequence[int], refresh: Callable[[], None]
) -> None:
    """SIGTERM to those that run; wait until they have ended, the time is up or another signal comes."""
    for worker in workers:
        if worker.status() is None:
            worker.process.send_signal(signal.SIGTERM)
    before = len(received)
    deadline = time.monotonic() + grace_s
    while (
        any(worker.status() is None for worker in workers) and time.monotonic() < deadline and len(received) == before
    ):
        refresh()
        time.sleep(POLL_INTERVAL_S)


def _explain(run_dir: Path | str, stage: str, failed: Mapping[int, int], count: int) -> RefBertError:
    """The error to raise: a worker's own sentence if there is one, otherwise how the first one ended.

    When one process fails the others often crash for the loss of it, and may do so before the first has ended; so any
    report comes before any crash, but "stopped" only if nothing else went wrong.
    """
    reports = {rank: read_json(path) for rank in range(count) if (path := error_path(run_dir, stage, rank)).exists()}
    kinds: dict[int, type[RefBertError]] = {kind.exit_code: kind for kind in (UserError, RefusedError, StoppedError)}
    for rank in sorted(reports, key=lambda rank: (rank not in failed, rank)):
        if reports[rank]["exit_code"] != StoppedError.exit_code:
            return kinds[reports[rank]["exit_code"]](reports[rank]["message"])
    crashed = {rank: status for rank, status in failed.items() if status != StoppedError.exit_code}
    if not crashed:
        return StoppedError(next((report["message"] for report in reports.values()), STOPPED_MESSAGE))
    rank, status = min(crashed.items())
    log = log_path(run_dir, stage, rank)
    logger.error("the end of %s:\n%s", log, _tail(log))
    # The kernel's way to get memory back leaves no word in the log.
    guess = ", perhaps because the machine ran out of memory" if status == -signal.SIGKILL else ""
    return RefusedError(f"stage {stage} failed in process {rank} ({_ending(status)}){guess}; see {log}")


def _ending(status: int) -> str:
    return f"exit status {status}" if status > 0 else signal.Signals(-status).name


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        lines = deque(stream, maxlen=TAIL_LINES)
    return b"".join(lines).decode(errors="replace").rstrip()
