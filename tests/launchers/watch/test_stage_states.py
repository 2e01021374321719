"""What is made of SLURM's answers, the jobs' notes and the processes' words."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_dirs import prepared_run, processes, start, submit

from launchers.cluster.formats import JobInfo
from launchers.cluster.records import Submission, stage_folder
from launchers.watch.stage_states import of_submitted
from refbert_dist.config import Experiment
from refbert_dist.engine.reports import report_error
from refbert_dist.errors import RefusedError, UserError

pytestmark = pytest.mark.dist

Refbert = Callable[..., tuple[int, str, str]]


@pytest.fixture
def exp(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Experiment:
    """A run that was prepared and nothing more."""
    return prepared_run(tmp_path_factory.getbasetemp(), tmp_path / "run")


def job(state: str, job_id: str = "7", **values: object) -> JobInfo:
    return JobInfo(job_id, state, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("info", "state", "words"),
    [
        (job("RUNNING", nodes="n1"), "running", ""),
        (job("COMPLETING", nodes="n1"), "running", ""),
        (job("PENDING", reason="Resources"), "pending", ""),
        (job("PENDING", reason="PartitionTimeLimit"), "pending", "lower time_min"),
        (job("PENDING", reason="Dependency"), "waiting", ""),
        (job("PENDING", reason="BeginTime", restarts=1), "stopped", "it crashed, or its node did, and is queued again"),
        (
            job("PENDING", reason="JobHeldUser", restarts=1),
            "stopped",
            "queued again; it cannot start, because it is held",
        ),
        (job("PREEMPTED"), "stopped", "nothing will start it again"),
        (job("FAILED", exit_code="75:0"), "stopped", "nothing will start it again"),
        (job("FAILED", exit_code="0:53"), "failed", "does not see the run directory (it left no log)"),
        (job("COMPLETED", exit_code="0:0"), "failed", "without leaving the result"),
        (job("CANCELLED", nodes="n1"), "cancelled", "cancelled by hand"),
        (None, "lost", "SLURM knows nothing of job 7, which never started"),
    ],
)
def test_what_slurm_says_of_a_job(exp: Experiment, info: JobInfo | None, state: str, words: str) -> None:
    finding = of_submitted(exp.run.dir, submit(exp, "retrieve"), {"7": info} if info else {}, done=False)
    assert finding.state == state and words in (finding.message or "")
    assert bool(finding.message) is bool(words)


def test_a_job_that_was_told_to_stop_says_so_while_it_is_queued_again(exp: Experiment) -> None:
    submission = submit(exp, "retrieve")
    start(exp, code=75)
    infos = {"7": job("PENDING", reason="BeginTime", restarts=1)}
    finding = of_submitted(exp.run.dir, submission, infos, done=False)
    assert (finding.state, finding.goes_on) == ("stopped", True)
    assert finding.message and finding.message.startswith("it was told to stop")


def test_slurm_knows_an_end_by_force_better_than_the_log(exp: Experiment) -> None:
    submission = submit(exp, "retrieve")
    processes(exp, "retrieve", "raise RuntimeError('no such block')")
    infos = {"7": job("TIMEOUT", exit_code="0:15")}
    assert "its time was up" in (of_submitted(exp.run.dir, submission, infos, done=False).message or "")
    infos = {"7": job("FAILED", exit_code="1:0")}
    assert "no such block" in (of_submitted(exp.run.dir, submission, infos, done=False).message or "")
    report_error(exp.run.dir, "retrieve", 0, RefusedError("the cache is damaged; run refbert cache repair"))
    infos = {"7": job("TIMEOUT", exit_code="0:15")}
    assert "cache is damaged" in (of_submitted(exp.run.dir, submission, infos, done=False).message or "")


def test_of_a_process_that_was_killed_srun_tells(exp: Experiment) -> None:
    submission = submit(exp, "retrieve")
    code = """
import os
if os.environ['RANK'] == '1':
    os.kill(os.getpid(), 9)
raise RuntimeError('Connection reset by peer')
"""
    processes(exp, "retrieve", code)
    stage_folder(exp.run.dir, "retrieve").mkdir(parents=True)
    said = """\
srun: error: n1: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=13825582.0
slurmstepd-n1: error: *** STEP 13825582.0 ON n1 CANCELLED AT 2026-11-22T21:22:33 ***
srun: error: n2: task 0: Terminated
srun: Force Terminated StepId=13825582.0
"""
    (stage_folder(exp.run.dir, "retrieve") / "7_0_log.out").write_text(said)
    finding = of_submitted(exp.run.dir, submission, {"7": job("FAILED", exit_code="15:0")}, done=False)
    assert finding.message == "task 1: Killed, on n1"


def test_words_of_an_earlier_submission_are_not_this_ones(exp: Experiment) -> None:
    processes(exp, "retrieve", "raise ValueError('of an earlier job')")
    report_error(exp.run.dir, "retrieve", 0, UserError("an earlier report"))
    submission = Submission("retrieve", "7", 1, 1, 2, (), time.time() + 1)
    finding = of_submitted(exp.run.dir, submission, {"7": job("FAILED", exit_code="1:0")}, done=False)
    assert finding.message == "it ended with exit code 1 (it left no log)"


def test_jobs_of_an_array_are_counted(exp: Experiment) -> None:
    submission = submit(exp, "retrieve", elements=4)
    infos = {f"7_{n}": job(state, f"7_{n}") for n, state in enumerate(["COMPLETED", "RUNNING", "RUNNING", "FAILED"])}
    finding = of_submitted(exp.run.dir, submission, infos, done=False)
    assert (finding.state, finding.counted) == ("running", "2 of 4")
    assert finding.message == "1 of 4 jobs failed; the others do their work"
    assert of_submitted(exp.run.dir, submission, infos, done=True).state == "done"


def test_the_words_are_those_of_the_job_that_failed(exp: Experiment) -> None:
    submission = submit(exp, "retrieve", elements=2)
    code = """
import os, signal, time
if os.environ['RANK'] in '23':
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1)
raise ValueError('in process ' + os.environ['RANK'])
"""
    processes(exp, "retrieve", code, count=4)
    infos = {"7_0": job("COMPLETED", "7_0"), "7_1": job("FAILED", "7_1", exit_code="1:0")}
    finding = of_submitted(exp.run.dir, submission, infos, done=False)
    assert finding.state == "failed" and finding.trace and finding.trace.number in (2, 3)


def test_jobs_of_an_array_that_were_cancelled_unstarted_leave_no_record(exp: Experiment) -> None:
    submission = submit(exp, "retrieve", elements=3)
    infos = {"7_0": job("RUNNING", "7_0")}
    found = of_submitted(exp.run.dir, submission, infos, done=False)
    assert [each.state for each in found.jobs] == ["RUNNING", "CANCELLED", "CANCELLED"]


def test_a_forgotten_job_is_judged_by_what_it_left(exp: Experiment) -> None:
    submission = submit(exp, "retrieve")
    start(exp)
    finding = of_submitted(exp.run.dir, submission, {}, done=False)
    assert (finding.state, finding.message) == ("lost", "SLURM knows nothing of job 7, which started last on n3")
    processes(exp, "retrieve", "pass")
    report_error(exp.run.dir, "retrieve", 1, UserError("the disk is full; make room"))
    finding = of_submitted(exp.run.dir, submission, {}, done=False)
    assert (finding.state, finding.message) == ("failed", "the disk is full; make room")
