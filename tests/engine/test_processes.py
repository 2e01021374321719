import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from refbert_dist.engine import processes
from refbert_dist.engine.processes import run_processes, worker_environment
from refbert_dist.engine.world import World
from refbert_dist.errors import RefusedError, StoppedError, UserError

pytestmark = pytest.mark.dist


def run(tmp_path: Path, code: str, count: int = 2, **options) -> int:
    options = {"threads": 1, "stage": "work", "environment": {"OUT": str(tmp_path)}} | options
    return run_processes([sys.executable, "-c", textwrap.dedent(code)], count=count, run_dir=tmp_path, **options)


def pids(tmp_path: Path) -> list[int]:
    return [int(path.read_text()) for path in tmp_path.glob("*.pid")]


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


WRITE_PID = """
import os, pathlib, signal, sys, time
out, rank = pathlib.Path(os.environ["OUT"]), int(os.environ["RANK"])
def write_pid():
    temporary = out / f"{rank}.tmp"
    temporary.write_text(str(os.getpid()))
    temporary.rename(out / f"{rank}.pid")
"""


def test_every_process_gets_its_place_its_threads_and_its_log(tmp_path):
    code = """
    import json, os
    print(json.dumps(dict(os.environ)))
    """
    assert run(tmp_path, code, count=3, threads=2) == 0
    found = [json.loads((tmp_path / "logs" / f"work-rank{rank}.log").read_text().splitlines()[-1]) for rank in range(3)]
    for rank, variables in enumerate(found):
        assert (variables["RANK"], variables["LOCAL_RANK"]) == (str(rank), str(rank))
        assert variables["WORLD_SIZE"] == "3"
        assert variables["MASTER_ADDR"] == "127.0.0.1"
        assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "2"
        assert variables["TOKENIZERS_PARALLELISM"] == "false"
        assert variables["PYTHONUNBUFFERED"] == "1"
        assert variables["OUT"] == str(tmp_path)
        assert (variables.get("DS_ACCELERATOR") == "cpu") == (not processes.has_cuda_device())
    assert len({variables["MASTER_PORT"] for variables in found}) == 1


def test_threads_share_the_cores_evenly_and_are_never_zero():
    cores = len(os.sched_getaffinity(0))
    assert worker_environment(World(0, 1, 0), 1, 20000, None)["OMP_NUM_THREADS"] == str(cores)
    assert worker_environment(World(0, 10 * cores, 0), 10 * cores, 20000, None)["OMP_NUM_THREADS"] == "1"


def test_a_second_start_appends_to_the_log(tmp_path):
    run(tmp_path, "print('first')", count=1)
    run(tmp_path, "print('second')", count=1)
    lines = (tmp_path / "logs" / "work-rank0.log").read_text().splitlines()
    assert [line for line in lines if not line.startswith("===")] == ["first", "second"]
    assert sum(line.startswith("=== ") and "start of process 0" in line for line in lines) == 2


def test_without_a_terminal_the_lines_of_the_first_process_come_on_stderr(tmp_path, capfd):
    run(tmp_path, "import os; print('line of', os.environ['RANK']); print('end', end='')")
    shown = capfd.readouterr().err
    assert "line of 0\n" in shown and "end\n" in shown
    assert "line of 1" not in shown


@pytest.mark.parametrize(
    ("kind", "error"), [("UserError", UserError), ("RefusedError", RefusedError), ("StoppedError", StoppedError)]
)
def test_the_sentence_of_a_worker_arrives_and_the_others_end(tmp_path, kind, error):
    code = (
        WRITE_PID
        + f"""
if rank == 0:
    write_pid()
    time.sleep(600)
while not (out / "0.pid").exists():
    time.sleep(0.01)
from refbert_dist.engine.reports import report_error
from refbert_dist.errors import {kind}
error = {kind}("the cause, and the fix")
report_error(out, "work", rank, error)
sys.exit(error.exit_code)
"""
    )
    with pytest.raises(error, match=r"^the cause, and the fix$"):
        run(tmp_path, code)
    assert len(pids(tmp_path)) == 1
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_report_comes_before_the_crash_that_it_caused_elsewhere(tmp_path):
    code = (
        WRITE_PID
        + """
from refbert_dist.engine.reports import report_error
from refbert_dist.errors import UserError
if rank == 0:
    while not (out / "1.pid").exists():
        time.sleep(0.01)
    raise ConnectionResetError("the other one left")
report_error(out, "work", rank, UserError("the cause"))
write_pid()
time.sleep(600)
"""
    )
    with pytest.raises(UserError, match="the cause"):
        run(tmp_path, code)


def test_a_report_of_an_earlier_start_is_not_believed(tmp_path):
    (tmp_path / "logs").mkdir()
    stale = tmp_path / "logs" / "work-rank0.error.json"
    stale.write_text('{"exit_code": 2, "message": "old"}')
    with pytest.raises(RefusedError, match=r"failed in process 0 \(exit status 3\)"):
        run(tmp_path, "raise SystemExit(3)", count=1)
    assert not stale.exists()


def test_a_crash_names_process_status_and_log_and_the_end_of_the_log_is_logged(tmp_path, caplog):
    code = """
    import os, time
    if os.environ["RANK"] == "0": time.sleep(600)
    for number in range(100): print("line", number)
    raise ValueError("boom")
    """
    with pytest.raises(RefusedError) as caught:
        run(tmp_path, code)
    log = tmp_path / "logs" / "work-rank1.log"
    assert str(caught.value) == f"stage work failed in process 1 (exit status 1); see {log}"
    assert "ValueError: boom" in caplog.text and "line 99" in caplog.text
    assert "line 50" not in caplog.text


@pytest.mark.faults
def test_a_killed_worker_is_named_by_its_signal_and_even_a_deaf_one_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "FAILURE_GRACE_S", 0.5)
    code = (
        WRITE_PID
        + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
write_pid()
if rank == 1:
    while len(list(out.glob("*.pid"))) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""
    )
    with pytest.raises(RefusedError, match=r"failed in process 1 \(SIGKILL\), perhaps .* memory; see"):
        run(tmp_path, code)
    assert len(pids(tmp_path)) == 2
    assert all(gone(pid) for pid in pids(tmp_path))


@pytest.mark.faults
def test_what_a_worker_started_ends_with_it(tmp_path):
    code = """
    import os, pathlib, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(os.environ["OUT"], "child.pid").write_text(str(child.pid))
    raise SystemExit(4)
    """
    with pytest.raises(RefusedError, match="exit status 4"):
        run(tmp_path, code, count=1)
    (child,) = pids(tmp_path)
    wait_for(lambda: gone(child))


PARENT = """
import os, sys
from refbert_dist.engine.processes import run_processes
from refbert_dist.errors import RefBertError
try:
    argv = [sys.executable, "-c", os.environ["CODE"]]
    run_processes(argv, count=2, threads=1, run_dir=os.environ["OUT"], stage="work")
except RefBertError as error:
    sys.stderr.write(f"ERROR {error}\\n")
    sys.exit(error.exit_code)
"""


def start_parent(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, "CODE": WRITE_PID + code, "OUT": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(pids(tmp_path)) == 2)
    return parent


@pytest.mark.faults
def test_no_worker_outlives_a_killed_parent(tmp_path):
    parent = start_parent(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); write_pid(); time.sleep(600)")
    assert not any(gone(pid) for pid in pids(tmp_path))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_for(lambda: all(gone(pid) for pid in pids(tmp_path)))


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_the_workers_save_and_exits_75(tmp_path, number):
    save = """
def save(*_):
    time.sleep(0.3)
    (out / f"saved-{rank}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
write_pid()
time.sleep(600)
"""
    parent = start_parent(tmp_path, save)
    parent.send_signal(number)
    _, shown = parent.communicate()
    assert parent.returncode == 75
    assert "ERROR stopped; run the same command again to continue" in shown
    assert (tmp_path / "saved-0").exists() and (tmp_path / "saved-1").exists()


@pytest.mark.faults
def test_a_second_signal_ends_the_wait(tmp_path):
    deaf = """
signal.signal(signal.SIGTERM, lambda *_: (out / f"heard-{rank}").touch())
write_pid()
while True:
    time.sleep(1)
"""
    parent = start_parent(tmp_path, deaf)
    parent.send_signal(signal.SIGINT)
    wait_for(lambda: len(list(tmp_path.glob("heard-*"))) == 2)
    assert parent.poll() is None
    parent.send_signal(signal.SIGINT)
    parent.communicate()
    assert parent.returncode == 75
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_terminal_shows_a_bar_with_the_numbers_of_the_worker(tmp_path):
    parent_end, child_end = pty.openpty()
    worker = """
from refbert_dist.tracking.progress import Progress
write_pid()
with Progress("work", 8, "steps", run_dir=out, enabled=rank == 0) as progress:
    progress.update(0)
    time.sleep(0.2)
    progress.update(4, loss=2.5)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, "CODE": WRITE_PID + worker, "OUT": str(tmp_path), "TERM": "xterm", "COLUMNS": "120"},
        stderr=child_end,
    )
    os.close(child_end)
    shown = b""
    # Linux answers EIO once the last writer has closed the terminal.
    with contextlib.suppress(OSError):
        while block := os.read(parent_end, 4096):
            shown += block
    os.close(parent_end)
    assert parent.wait() == 0
    assert "work  starting" in shown.decode()
    assert "work  50 %  4/8 steps" in shown.decode() and "loss 2.5" in shown.decode()


def test_workers_that_stop_by_themselves_are_a_stop_and_not_a_failure(tmp_path):
    with pytest.raises(StoppedError, match="run the same command again"):
        run(tmp_path, "raise SystemExit(75)")


def test_the_handlers_of_the_caller_come_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(tmp_path, "pass")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_processes_can_be_run_from_a_thread(tmp_path):
    result = []
    thread = threading.Thread(target=lambda: result.append(run(tmp_path, "pass")))
    thread.start()
    thread.join()
    assert result == [0]


# -- independent groups ----------------------------------------------------------------------------------------------


def test_groups_are_worlds_of_their_own(tmp_path):
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    run(tmp_path, code, count=4, group_size=2)
    logs = [tmp_path / "logs" / f"work-rank{number}.log" for number in range(4)]
    found = [json.loads(log.read_text().splitlines()[-1]) for log in logs]
    assert [variables["RANK"] for variables in found] == ["0", "1", "0", "1"]
    assert [variables["REFBERT_GROUP"] for variables in found] == ["0", "0", "1", "1"]
    assert (
        {variables["WORLD_SIZE"] for variables in found}
        == {variables["REFBERT_GROUPS"] for variables in found}
        == {"2"}
    )
    assert [variables["LOCAL_RANK"] for variables in found] == ["0", "1", "2", "3"]
    ports = [variables["MASTER_PORT"] for variables in found]
    assert ports[0] == ports[1] != ports[2] == ports[3]


def test_a_lost_group_takes_its_mates_with_it_but_not_the_others(tmp_path, caplog):
    """Process 1 dies; its mate 0 would wait for it for ever; group 1 finishes the work."""
    code = """
import os, pathlib, signal, time
out, number = pathlib.Path(os.environ["OUT"]), int(os.environ["REFBERT_GROUP"]) * 2 + int(os.environ["RANK"])
if number == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if number == 0:
    time.sleep(600)
time.sleep(0.5)
(out / f"{number}.done").touch()
"""
    assert run(tmp_path, code, count=4, group_size=2) == 0
    assert sorted(path.name for path in tmp_path.glob("*.done")) == ["2.done", "3.done"]
    assert "process 1 of stage work was lost (SIGKILL); the others did its work" in caplog.text


def test_the_loss_of_all_groups_is_a_failure(tmp_path):
    with pytest.raises(RefusedError, match=r"stage work failed in process \d \(SIGKILL\)"):
        run(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", count=2, group_size=1)


def test_a_failure_that_a_group_explains_ends_all(tmp_path):
    code = """
import os, sys, time
from refbert_dist.engine.reports import report_error
from refbert_dist.errors import UserError
if os.environ["REFBERT_GROUP"] == "0":
    time.sleep(600)
report_error(os.environ["OUT"], "work", 1, UserError("the disk is full"))
sys.exit(2)
"""
    with pytest.raises(UserError, match="the disk is full"):
        run(tmp_path, code, count=2, group_size=1)


def test_groups_must_divide_the_processes(tmp_path):
    with pytest.raises(UserError, match=r"launch\.processes is 3.*cache\.group_processes.*set launch\.processes=2"):
        run(tmp_path, "", count=3, group_size=2)
