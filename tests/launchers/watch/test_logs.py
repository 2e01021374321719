"""``refbert logs``: the newest, followed, and of what has failed."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_dirs import prepared_run, processes, start, submit

from launchers.cluster.records import stage_folder
from launchers.watch import logs
from refbert_dist.config import Experiment
from refbert_dist.engine.reports import log_path, open_log, report_error
from refbert_dist.errors import RefusedError
from refbert_dist.rundir import open_run

pytestmark = pytest.mark.dist

Refbert = Callable[..., tuple[int, str, str]]


@pytest.fixture
def exp(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Experiment:
    """A run that was prepared and nothing more."""
    return prepared_run(tmp_path_factory.getbasetemp(), tmp_path / "run")


def test_the_log_of_the_newest_stage_is_shown(exp: Experiment, refbert: Refbert) -> None:
    processes(exp, "finetune", "print('of finetune')", count=1)
    processes(exp, "retrieve", "print(*range(100), sep='\\n')", count=1)
    code, out, _ = refbert("logs", exp.run.dir, "--lines", "3")
    assert code == 0
    assert out == f"==> {exp.run.dir / 'logs' / 'retrieve-rank0.log'} <==\n97\n98\n99\n"
    assert refbert("logs", exp.run.dir)[1].count("\n") == 41
    assert "of finetune" in refbert("logs", exp.run.dir, "finetune")[1]


def test_a_wrong_stage_is_refused_and_a_silent_one_explained(exp: Experiment, refbert: Refbert) -> None:
    code, _, err = refbert("logs", exp.run.dir, "evalute")
    assert code == 2 and "stage is 'evalute', which this run does not have; did you mean 'evaluate'?" in err
    code, _, err = refbert("logs", exp.run.dir, "evaluate")
    assert code == 1 and f"evaluate has printed nothing yet; refbert status {exp.run.dir} tells why" in err


def test_failures_come_with_sentence_and_log_and_what_slurm_said(
    exp: Experiment, refbert: Refbert, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refbert("logs", exp.run.dir, "--failed")[:2] == (0, f"nothing has failed in {exp.run.dir}\n")
    monkeypatch.setenv("PATH", "")
    submit(exp, "retrieve", elements=2)
    processes(exp, "retrieve", "import os; raise ValueError('in process ' + os.environ['RANK'])", count=4)
    start(exp, "7_0", code=0)
    start(exp, "7_1", code=1)
    stage_folder(exp.run.dir, "retrieve").mkdir(parents=True)
    for name, text in (
        ("7_0_0_log.out", "of another job"),
        ("7_1_0_log.out", "srun: error: n3"),
        ("7_1_0_log.err", ""),
    ):
        (stage_folder(exp.run.dir, "retrieve") / name).write_text(text)
    code, out, _ = refbert("logs", exp.run.dir, "--failed")
    assert code == 0 and "of another job" not in out and "7_1_0_log.err" not in out
    sentence, log, said = (out.index(text) for text in ("retrieve failed: process", "Traceback", "srun: error: n3"))
    assert sentence < log < said


def test_of_a_job_that_gave_up_the_crash_is_shown_as_well(exp: Experiment, refbert: Refbert) -> None:
    processes(exp, "retrieve", "import os; os.environ['RANK'] == '1' and int('the ' + 'cause')")
    for number in range(2):
        open_log(log_path(exp.run.dir, "retrieve", number), "process").close()
    report_error(exp.run.dir, "retrieve", 0, RefusedError("retrieve has crashed 3 times in a row; mend the cause"))
    _, out, _ = refbert("logs", exp.run.dir, "--failed")
    assert out.startswith("retrieve failed: retrieve has crashed 3 times in a row; mend the cause\n")
    assert out.index("retrieve-rank0.log <==") < out.index("retrieve-rank1.log <==") < out.index("'the cause'")


def test_following_ends_with_the_run_and_goes_from_stage_to_stage(exp: Experiment) -> None:
    processes(exp, "finetune", "print('before')", count=1)
    command = [sys.executable, "-m", "launchers.cli", "logs", str(exp.run.dir), "-f", "-n", "1"]
    with (
        open_run(exp),
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as follower,
    ):
        assert follower.stdout and follower.stderr
        assert follower.stdout.readline().endswith("finetune-rank0.log <==\n")
        assert follower.stdout.readline() == "before\n"
        # A log that grows in the middle of a line, and another one that begins.
        with log_path(exp.run.dir, "finetune", 0).open("a") as log:
            log.write("half a ")
            log.flush()
            time.sleep(2 * logs.LOOK_INTERVAL_S)
            log.write("line\n")
        assert follower.stdout.readline() == "half a line\n"
        processes(exp, "retrieve", "raise ValueError('the end')", count=1)
        assert follower.stdout.readline().endswith("retrieve-rank0.log <==\n")
        assert follower.stdout.readline().startswith("=== ")
        assert follower.poll() is None
        with log_path(exp.run.dir, "retrieve", 0).open("a") as log:
            log.write("no line break at the end")
        (exp.run.dir / ".lock").rename(exp.run.dir / ".lock.old")
        assert follower.stdout.read().endswith("ValueError: the end\nno line break at the end\n")
        assert "retrieve failed: process 0: ValueError: the end" in follower.stderr.read()
        assert follower.wait() == 0


def test_an_interrupt_ends_following_quietly(exp: Experiment) -> None:
    processes(exp, "finetune", "print('here')", count=1)
    command = [sys.executable, "-m", "launchers.cli", "logs", str(exp.run.dir), "-f"]
    with (
        open_run(exp),
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What runs the tests in the background may ignore interrupts, which children would do, too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as follower,
    ):
        assert follower.stdout
        while follower.stdout.readline() != "here\n":
            assert follower.poll() is None
        follower.send_signal(2)
        assert follower.communicate(timeout=60)[1] == "" and follower.returncode == 0
