"""What befalls jobs on a cluster, and that it changes nothing: SLURM is real, and so is every trouble."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from survivors import (
    CRASHED,
    STAGE,
    STOPPED,
    Origin,
    Survivor,
    await_ends,
    job_ids,
    nodes_of,
    pid_on,
    stage_status,
    submit,
    until,
)
from tiny import tiny_experiment

from launchers.cluster.records import attempts, stage_folder, submitted
from refbert_dist import pipeline
from refbert_dist.config import Experiment
from refbert_dist.rundir import EXPERIMENT

Start = Callable[..., Survivor]
Trouble = Callable[[Survivor], object]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return Origin.make(tmp_path_factory.mktemp("origin"))


@pytest.fixture
def survivor(sandbox: Any, origin: Origin, shared_dir: Path) -> Start:
    return lambda *overrides, **fields: Survivor(sandbox, origin, shared_dir, *overrides, **fields)


# -- told to stop ------------------------------------------------------------------------------------------------------


def requeue(job: Survivor) -> None:
    job.halt()
    job.sandbox.sh("scontrol", "requeue", job.job_id)


def tell_one_of_two(job: Survivor) -> None:
    job.signal(job.nodes()[1], "USR2")


def tell_all(job: Survivor) -> None:
    job.sandbox.sh("scancel", "--signal=USR2", job.job_id)


def tell_the_batch_script_too(job: Survivor) -> None:
    job.sandbox.sh("scancel", "--signal=USR2", "--full", job.job_id)


def preempt(job: Survivor) -> None:
    preemptor = ("--partition=high", "--exclusive", f"--nodelist={','.join(job.nodes())}", "--output=/dev/null")
    job.halt()
    job.sandbox.sh("sbatch", *preemptor, "--wrap=true")


EARLY_MIN = 3
"""Of a job's time limit: it is told to stop so long before."""


def run_out_of_time(job: Survivor) -> None:
    """A limit so near from the beginning could come before the job is ready, or meet the next start as well."""
    job.halt()
    (start,) = (start for start in job.starts() if start.exit_code is None)
    job.limit(int(time.time() - start.started_at) // 60 + EARLY_MIN)
    until(lambda: start not in job.starts(), "the end of the start whose time was up")
    job.limit(60)


TOLD: dict[str, Trouble] = {
    "queued again by hand": requeue,
    "one of two is told": tell_one_of_two,
    "all are told": tell_all,
    "the batch script is told as well": tell_the_batch_script_too,
    "preempted with a grace": preempt,
    "time limit": run_out_of_time,
}


def test_told_to_stop_in_every_way(survivor: Start) -> None:
    job = survivor(signal_delay_s=60 * EARLY_MIN)
    job.endure(TOLD)
    job.assert_unharmed(dict.fromkeys(TOLD, STOPPED))


# -- lost --------------------------------------------------------------------------------------------------------------


def kill_one_of_two(job: Survivor) -> None:
    until(job.checkpoints, "a checkpoint")
    job.signal(job.nodes()[1], "KILL")


LOST: dict[str, tuple[Trouble, int | None]] = {
    "one of two is killed": (kill_one_of_two, CRASHED),
    "told while it saves": (lambda job: job.signal_while_saving("USR2"), STOPPED),
    "killed while it saves": (lambda job: job.signal_while_saving("KILL"), CRASHED),
    "preempted without a grace": (preempt, STOPPED),
}


def test_killed_and_disturbed_while_it_saves(survivor: Start) -> None:
    job = survivor("engine.checkpoint_steps=10", partition="rude")
    job.endure({name: befall for name, (befall, _) in LOST.items()})
    job.assert_unharmed({name: ending for name, (_, ending) in LOST.items()}, steps_lost=True)


def test_nodes_fail(survivor: Start, sandbox: Any) -> None:
    job = survivor("engine.checkpoint_steps=10")
    job.await_training()
    first = job.nodes()[0]
    # A daemon that comes back finds its job again.
    sandbox.node("kill-slurmd", first)
    sandbox.node("start-slurmd", first)

    # A node is given up whose processes live on.
    job.signal_script(first, "STOP")
    sandbox.node("kill-slurmd", first)
    sandbox.sh("scontrol", "update", f"nodename={first}", "state=down", "reason=test")
    job.await_training(start=1)
    # It wakes up to processes that have ended, and would have a job queued again that runs elsewhere by now.
    job.signal_script(first, "CONT")

    until(job.checkpoints, "a checkpoint")
    sandbox.node("crash", job.nodes()[1])
    job.assert_unharmed({"a node is given up": STOPPED, "a node crashes": CRASHED}, steps_lost=True)


# -- not to be continued -----------------------------------------------------------------------------------------------


def test_it_gives_up_when_it_crashes_at_the_same_place(survivor: Start, sandbox: Any) -> None:
    job = survivor(restarts=0)
    job.await_training()
    job.signal(job.nodes()[1], "KILL")
    job.await_end()
    found = stage_status(job.exp)
    assert (found.state, found.message) == (
        "failed",
        "distill-general has crashed once without getting any further, so it is not started again; mend the cause that "
        "its log shows, then refbert resume",
    )
    assert len(job.starts()) == 2
    until(lambda: sandbox.sacct(job.next_id).startswith("CANCELLED"), "the end of the job after it")


def test_cancelled_by_hand_and_started_anew(survivor: Start, sandbox: Any) -> None:
    job = survivor()
    job.await_training()
    nodes = job.nodes()
    sandbox.sh("scancel", job.job_id)
    job.await_end()
    until(lambda: sandbox.sacct(job.next_id).startswith("CANCELLED"), "the end of the job after it")
    assert [start.exit_code for start in job.starts()] == [STOPPED]
    assert stage_status(job.exp).state == "cancelled"
    assert not any(map(job.pid, nodes))
    job.submit()
    job.assert_unharmed()


# -- chains ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unprepared(shared_dir: Path) -> Experiment:
    text = shared_dir / "corpus.txt"
    text.write_text("\n\n".join(f"Here is text number {number}, with some words in it." for number in range(99)))
    return tiny_experiment(shared_dir, f"corpus.path={text}")


def release(sandbox: Any, exp: Experiment) -> None:
    sandbox.sh("scontrol", "release", *job_ids(exp).values())
    await_ends(exp)


HELD = {"hold": True}


def test_jobs_run_from_copies_that_were_made_at_submission(sandbox: Any, unprepared: Experiment) -> None:
    exp = unprepared
    submit(exp, "prepare", nodes=1, sbatch=HELD)
    (exp.run.dir / EXPERIMENT).write_text("seed: nonsense\n")
    (copy,) = submitted(exp.run.dir).glob("code/*/launchers/cluster/job.py")
    copy.write_text(copy.read_text() + "\nprint('from the copy', flush=True)\n")
    release(sandbox, exp)
    assert not pipeline.missing_stages(exp, ["prepare"])
    (said,) = stage_folder(exp.run.dir, "prepare").glob("*_log.out")
    assert "from the copy" in said.read_text()


def test_an_explained_failure_is_final_and_ends_what_waits_for_it(sandbox: Any, unprepared: Experiment) -> None:
    exp = unprepared
    submit(exp, "retrieve", nodes=1, sbatch=HELD)
    Path(exp.corpus.path).unlink()
    release(sandbox, exp)
    prepare, retrieve = stage_status(exp, "prepare"), stage_status(exp, "retrieve")
    assert prepare.state == "failed" and "corpus.path" in prepare.message
    assert retrieve.state == "cancelled"
    assert retrieve.message == "it never starts, because prepare has failed"
    assert len(attempts(exp.run.dir, job_ids(exp)["prepare"])) == 1


def test_after_an_array_that_fails_the_next_stage_refuses(sandbox: Any, unprepared: Experiment) -> None:
    exp = unprepared
    submit(exp, "retrieve", nodes=2, sbatch=HELD)
    Path(exp.corpus.path).unlink()
    # A result might only be slow to show; that there is none is believed sooner here.
    (copy,) = submitted(exp.run.dir).glob("code/*/launchers/cluster/job.py")
    copy.write_text(copy.read_text().replace("SHARED_DISK_LAG_S = 60.0", "SHARED_DISK_LAG_S = 0.0"))
    release(sandbox, exp)
    assert stage_status(exp, "prepare").state == "failed"
    found = stage_status(exp, "retrieve")
    assert (found.state, found.message) == ("failed", "retrieve cannot start, because prepare did not finish")


def test_one_job_of_an_array_is_killed(sandbox: Any, shared_dir: Path) -> None:
    exp = tiny_experiment(
        shared_dir,
        *("systems=[tinybert]", "references.count=0", "distill.general.steps=2"),
        *("corpus.max_documents=100", "cache.batch_tokens=64"),
    )
    pipeline.run(exp, ["prepare"])
    array = {"nodes": 4, "array_parallelism": 2, "sbatch": {"exclusive": True}}
    submit(exp, STAGE, nodes=1, stages={"cache-general": array})
    first, second, last = (f"{job_ids(exp)['cache-general']}_{number}" for number in (0, 1, 3))
    states = next(leaf.artifact for leaf in pipeline.leaves(exp) if leaf.stage == "cache-general")
    until(states.committed, "the first shard")
    (node,) = nodes_of(sandbox, first)
    sandbox.exec(node, "kill", "-KILL", pid_on(sandbox, node))
    await_ends(exp)
    assert not pipeline.missing_stages(exp, [STAGE])
    assert [start.exit_code for start in attempts(exp.run.dir, first)][:1] == [CRASHED]
    assert [start.exit_code for start in attempts(exp.run.dir, second)] == [0]
    assert not attempts(exp.run.dir, last)
