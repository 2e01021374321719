"""``refbert status``, ``logs`` and ``cancel`` of real jobs: small scripts in the place of stages."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_experiment

from launchers.cluster import scheduler
from launchers.cluster.records import Attempt, Submission, add_attempt, add_submissions, stage_folder
from launchers.watch import logs
from launchers.watch.run_status import StageStatus, status
from launchers.watch.status import cancel_run, show_status
from refbert_dist import pipeline
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.errors import RefusedError, StoppedError

PATIENCE_S = 60.0
NEVER_EXISTED = "999999999"


@pytest.fixture
def exp(shared_dir: Path) -> Experiment:
    """A run whose experiment has every stage, and that has done none."""
    exp = tiny_experiment(shared_dir)
    (exp.run.dir / "logs").mkdir(parents=True)
    (exp.run.dir / "experiment.yaml").write_text(to_yaml(exp))
    return exp


@pytest.fixture
def submit(sandbox: Any, exp: Experiment) -> Callable[..., str]:
    """Give a stage a job that runs some lines of shell; returns its number."""

    def submit(
        stage: str, lines: str, *options: str, elements: int = 1, after: tuple[str, ...] = (), tasks: int = 1
    ) -> str:
        folder = stage_folder(exp.run.dir, stage)
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "job.sh"
        script.write_text(f"#!/bin/bash\ncd {exp.run.dir}/logs\n{lines}\n")
        array = (f"--array=0-{elements - 1}", f"--output={folder}/%A_%a_0_log.out")
        output = array if elements > 1 else (f"--output={folder}/%j_0_log.out",)
        submitted_at = time.time()
        job_id = sandbox.sh("sbatch", "--parsable", f"--ntasks={tasks}", *output, *options, str(script)).strip()
        add_submissions(exp.run.dir, [Submission(stage, job_id, elements, 1, tasks, after, submitted_at)])
        return job_id

    return submit


def until(exp: Experiment, **wanted: str) -> dict[str, StageStatus]:
    """Wait until these stages are in these states."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = {stage.name.replace("-", "_"): stage for stage in status(exp.run.dir).stages}
        got = {name: found[name].state for name in wanted}
        if got == wanted:
            return found
        assert time.monotonic() < deadline, (
            f"{got}; {[(found[name].message, found[name].finding.jobs) for name in got]}"
        )
        time.sleep(0.3)


def stage_lines(exp: Experiment) -> dict[str, str]:
    """What a person sees in a terminal of 80 columns, by the first word."""
    stream = io.StringIO()
    show_status(exp.run.dir, as_json=False, console=Console(file=stream, width=80))
    return {line.split()[0]: line for line in stream.getvalue().splitlines() if line.strip()}


def test_every_state_that_a_job_can_be_in(
    exp: Experiment, submit: Callable[..., str], sandbox: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = submit("prepare", "sleep 300")
    array = submit("retrieve", "[ $SLURM_ARRAY_TASK_ID = 1 ] && exit 3\nsleep 300", elements=6)
    submit("cache-general", "true", f"--dependency=afterok:{slow}", after=("prepare",))
    submit("distill-general", "true", "--partition=debug", "--time=99")
    again = "[ ${SLURM_RESTART_COUNT:-0} = 0 ] && scontrol requeue $SLURM_JOB_ID\nsleep 300"
    requeued = submit("finetune", again, "--begin=now", "--open-mode=append")
    report = """echo '{"exit_code": 1, "message": "the disk is full; make room"}' > cache-task-rank0.error.json"""
    failing = submit("cache-task", f"echo === > cache-task-rank0.log\n{report}\nexit 1")
    submit(
        "distill-task", "true", f"--dependency=afterok:{failing}", "--kill-on-invalid-dep=yes", after=("cache-task",)
    )
    submit("evaluate", "true", "--output=/nowhere/log")
    add_submissions(exp.run.dir, [Submission("export", NEVER_EXISTED, 1, 1, 1, (), time.time())])
    add_attempt(
        exp.run.dir, Attempt(requeued, 0, "n1", time.time() - 9, "", time.time() - 1, exit_code=StoppedError.exit_code)
    )

    sandbox.sh("scancel", f"{array}_5")
    found = until(
        exp,
        prepare="running",
        retrieve="running",
        cache_general="waiting",
        distill_general="pending",
        finetune="stopped",
        cache_task="failed",
        distill_task="cancelled",
        evaluate="failed",
        export="lost",
    )
    sandbox.sh("scontrol", "update", f"jobid={slow}", "EndTime=now")  # SLURM sees it after up to 30 seconds.
    assert status(exp.run.dir).state == "running"
    assert found["retrieve"].finding.counted == "4 of 6"
    assert [job.state for job in found["retrieve"].finding.jobs].count("FAILED") == 1
    assert found["finetune"].message == (
        "it was told to stop (its time was up, or another job needed the room) and is queued again"
    )
    assert found["finetune"].finding.jobs[0].restarts == 1
    assert "cannot start, because it asks for more time" in str(found["distill_general"].message)
    assert found["cache_task"].message == "the disk is full; make room"
    assert found["distill_task"].message == "it never starts, because cache-task has failed"
    assert "does not see the run directory" in str(found["evaluate"].message)
    assert NEVER_EXISTED in str(found["export"].message)

    lines = stage_lines(exp)
    assert "4 of 6 running" in lines["retrieve"] and "for prepare" in lines["cache-general"]
    assert all(len(lines[stage.name]) <= 80 for stage in pipeline.STAGES if stage.wanted(exp))

    logs.show_logs(exp.run.dir, None, follow=False, failed=True, lines=5)
    out = capsys.readouterr().out
    assert "cache-task failed: the disk is full" in out and "evaluate failed" in out and "distill-task" not in out

    found = until(exp, prepare="failed")
    assert "its time was up before it had stopped" in str(found["prepare"].message)
    found = until(exp, cache_general="waiting", finetune="running")
    assert found["cache_general"].message == "it never starts, because prepare has failed"

    cancel_run(exp.run.dir, Console(file=(stream := io.StringIO()), width=160))
    ended = ["finetune", "distill-general", "cache-general", "retrieve"]
    assert [line.split()[1].rstrip(",") for line in stream.getvalue().splitlines()[:-1]] == ended
    found = until(exp, cache_general="cancelled", finetune="cancelled", distill_general="cancelled")
    assert found["finetune"].message == "it was cancelled by hand"
    assert scheduler.queued([array, slow, requeued, failing]) == {}


def test_following_goes_on_when_a_job_is_queued_again(exp: Experiment, submit: Callable[..., str]) -> None:
    lines = """
echo "start ${SLURM_RESTART_COUNT:-0}" >> retrieve-rank0.log
[ ${SLURM_RESTART_COUNT:-0} = 0 ] && scontrol requeue $SLURM_JOB_ID && sleep 60
echo '{"exit_code": 2, "message": "task.path is wrong; set task.path"}' > retrieve-rank0.error.json
exit 2
"""
    submit("retrieve", lines, "--open-mode=append")
    command = [sys.executable, "-m", "launchers.cli", "logs", str(exp.run.dir), "-f"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert [line for line in done.stdout.splitlines() if line.startswith("start")] == ["start 0", "start 1"]
    assert done.returncode == 0 and done.stderr == "retrieve failed: task.path is wrong; set task.path\n"


def test_what_srun_says_of_a_killed_process(exp: Experiment, submit: Callable[..., str]) -> None:
    lines = """
srun --kill-on-bad-exit=1 bash -c '
    echo === > retrieve-rank$SLURM_PROCID.log
    [ $SLURM_PROCID = 1 ] && kill -9 $$
    sleep 60'
"""
    submit("retrieve", lines, tasks=2)
    found = until(exp, retrieve="failed")
    assert str(found["retrieve"].message).startswith("task 1: Killed, on n")


def test_accounting_remembers_what_the_controller_says(exp: Experiment, submit: Callable[..., str]) -> None:
    job_id = submit("retrieve", "true", "--hold", elements=5)
    scheduler.cancel([job_id, NEVER_EXISTED])
    wanted = {f"{job_id}_{element}" for element in range(5)}
    deadline = time.monotonic() + PATIENCE_S
    while {info.job_id for info in scheduler.accounted([job_id]).values() if info.state == "CANCELLED"} != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert set(scheduler.accounted([f"{job_id}_3"])) == {f"{job_id}_3"}
    assert scheduler.queued([job_id]) == {}


def test_habits_of_a_person_do_not_change_the_answers(
    submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit("retrieve", "true", "--hold")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    assert scheduler.jobs([job_id])[job_id].reason == "JobHeldUser"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RefusedError, match="squeue is not on this machine"):
        scheduler.jobs([job_id])


def test_a_controller_that_does_not_answer(
    exp: Experiment, submit: Callable[..., str], shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit("retrieve", "true", "--hold")
    given = Path("/etc/slurm/slurm.conf").read_text().splitlines()
    changed = [line for line in given if not line.startswith(("SlurmctldHost", "Accounting", "MessageTimeout"))]
    changed += ["SlurmctldHost=nobody(127.0.0.1)", "MessageTimeout=2"]
    (shared_dir / "slurm.conf").write_text("\n".join(changed) + "\n")
    monkeypatch.setenv("SLURM_CONF", str(shared_dir / "slurm.conf"))
    monkeypatch.setattr(scheduler, "PATIENCE_S", 0.0)
    with pytest.raises(RefusedError, match=r"SLURM does not answer: .*Unable to contact slurm controller"):
        scheduler.queued(["1"])
    assert scheduler.accounted(["1"]) == {}
    run = status(exp.run.dir)
    assert run.note and "SLURM does not answer" in run.note and run.stages[1].state == "pending"


@pytest.mark.usefixtures("sandbox")
def test_partitions_and_scripts(shared_dir: Path) -> None:
    found = scheduler.partitions()
    assert found["main"].default and found["main"].is_up and found["main"].max_time_min is None
    assert found["debug"].max_time_min == 2 and found["debug"].max_nodes == 1
    assert found["paid"].allow_accounts == ("paid",) and found["main"].gpus_per_node > 0
    assert scheduler.default_account() == "default"
    script = shared_dir / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --partition=main\ntrue\n")
    assert scheduler.test_only(script).accepted
    script.write_text("#!/bin/bash\n#SBATCH --partition=nowhere\ntrue\n")
    verdict = scheduler.test_only(script)
    assert (verdict.accepted, verdict.text) == (False, "Invalid partition name specified")
