"""In which state a stage is: from what SLURM says, what its jobs have noted, and what its processes have left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from launchers.cluster.formats import JobInfo
from launchers.cluster.reasons import ending_in_words, in_words, waits_in_vain
from launchers.cluster.records import Attempt, Submission, attempts, stage_folder
from launchers.watch.evidence import Trace, first_failed, srun_words, traces
from refbert_dist.errors import StoppedError

State = Literal[
    "done", "running", "pending", "waiting", "stopped", "failed", "cancelled", "lost", "to run", "not needed"
]
"""``waiting``: for other stages' jobs. ``stopped``: told to stop; queued again, or to be run again. ``lost``: SLURM
knows nothing of its job, and it is not done. ``to run``: never begun."""

UNKNOWN = "UNKNOWN"
"""State of a job that SLURM does not know, or cannot be asked about."""
SLURM_DECIDES = ("TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")
"""Endings that SLURM knows better than the processes, whose last words are about the consequences."""
PRECEDENCE: tuple[State, ...] = ("running", "pending", "stopped", "waiting", "failed", "lost", "cancelled", "done")
"""Of an array: what one of its jobs is in first makes the state of the stage."""


@dataclass(frozen=True)
class Finding:
    """The state of a stage, and what a person should know of it."""

    state: State
    message: str | None = None
    """A sentence without capital and full stop; None where there is nothing to say."""
    counted: str | None = None
    """``3 of 8``: jobs of an array that are in this state, while it is under way."""
    jobs: tuple[JobInfo, ...] = ()
    job: JobInfo | None = None
    """The one by which the stage is judged."""
    trace: Trace | None = None
    """Of the process that failed first."""

    @property
    def goes_on(self) -> bool:
        """Whether it will run, or runs, without anybody doing anything."""
        return self.state in ("running", "pending") or (
            self.state == "stopped" and any(job.state != UNKNOWN and not job.is_over for job in self.jobs)
        )


# -- as jobs of SLURM --------------------------------------------------------------------------------------------------


def of_submitted(run_dir: Path, submission: Submission, infos: Mapping[str, JobInfo] | None, done: bool) -> Finding:
    """The state of a stage that was submitted; ``infos``: what SLURM knows of all jobs, None if it cannot be asked."""
    starts = {job_id: attempts(run_dir, job_id) for job_id in submission.job_ids}
    jobs = {job_id: _job(job_id, submission, infos, starts[job_id]) for job_id in submission.job_ids}
    if done:
        return Finding("done", jobs=tuple(jobs.values()))
    states = {job_id: _state(jobs[job_id], starts[job_id], asked=infos is not None) for job_id in jobs}
    counts = Counter(states.values())
    state = min(counts, key=PRECEDENCE.index)
    job = next(jobs[job_id] for job_id, found in states.items() if found == state)
    finding = Finding(state, jobs=tuple(jobs.values()), job=job)
    if job.state == UNKNOWN and (judged := _by_words(run_dir, submission, finding, job)):
        return judged
    if state in ("running", "pending", "waiting", "stopped"):
        message = _outlook(state, job, starts[job.job_id])
        if state == "running" and counts["failed"]:
            message = f"{counts['failed']} of {len(jobs)} jobs failed; the others do their work"
        counted = f"{counts[state]} of {len(jobs)}" if len(jobs) > 1 and state != "waiting" else None
        return replace(finding, counted=counted, message=message)
    if state == "cancelled":
        return replace(finding, message=ending_in_words("CANCELLED", ""))
    if state == "lost":
        last = starts[job.job_id][-1:]
        where = f"which started last on {last[0].host}" if last else "which never started"
        return replace(finding, message=f"SLURM knows nothing of job {job.job_id}, {where}")
    # All jobs may have ended well, and the stage is not done for all that.
    return _failure(run_dir, submission, replace(finding, state="failed"), job)


def _job(job_id: str, submission: Submission, infos: Mapping[str, JobInfo] | None, starts: list[Attempt]) -> JobInfo:
    info = (infos or {}).get(job_id)
    if info is None and infos and any(other in infos for other in submission.job_ids):
        # SLURM keeps no record of a job of an array that is cancelled before it was ever started.
        return JobInfo(job_id, "CANCELLED")
    if info is None:
        info = JobInfo(job_id, UNKNOWN)
    if not starts:
        return info
    last = starts[-1]
    if info.state == UNKNOWN:
        elapsed_s = None if last.ended_at is None else last.ended_at - last.started_at
        info = replace(info, nodes=last.host, elapsed_s=elapsed_s)
    return info if info.restarts is not None else replace(info, restarts=last.number)


def _state(job: JobInfo, starts: list[Attempt], asked: bool) -> State:
    """Of one job."""
    if job.state == UNKNOWN:
        return _noted_state(starts, asked)
    if job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        if job.restarts:
            return "stopped"
        return "waiting" if job.reason.startswith("Dependency") else "pending"
    if not job.is_over:
        return "running"
    if job.state == "COMPLETED":
        return "done"
    if job.state == "CANCELLED":
        return "cancelled"
    if job.state == "PREEMPTED" or job.exit_code.startswith(f"{StoppedError.exit_code}:"):
        return "stopped"
    return "failed"


def _noted_state(starts: list[Attempt], asked: bool) -> State:
    """Of a job of which only its own notes tell; of one without an end SLURM would know, if it could be asked."""
    if not starts:
        return "lost" if asked else "pending"
    code = starts[-1].exit_code
    if code is None:
        return "lost" if asked else "running"
    if code == 0:
        return "done"
    return "stopped" if code == StoppedError.exit_code else "failed"


def _outlook(state: State, job: JobInfo, starts: list[Attempt]) -> str | None:
    """What to say of a job that has not failed."""
    in_vain = in_words(job.reason) if waits_in_vain(job.reason) else None
    if state != "stopped":
        return in_vain
    if job.is_over or job.state == UNKNOWN:
        return "it was told to stop, and nothing will start it again"
    if starts and starts[-1].exit_code == StoppedError.exit_code:
        ended = "it was told to stop (its time was up, or another job needed the room)"
    else:
        ended = "it crashed, or its node did,"
    return f"{ended} and is queued again" + (f"; it {in_vain}" if in_vain else "")


def _by_words(run_dir: Path, submission: Submission, finding: Finding, job: JobInfo) -> Finding | None:
    """The state as the processes of a job explain it that SLURM cannot tell of; None if they do not."""
    trace = first_failed(_traces(run_dir, submission, job))
    if trace is None or trace.report is None:
        return None
    return replace(finding, state="stopped" if trace.stopped else "failed", message=trace.message, trace=trace)


def _failure(run_dir: Path, submission: Submission, finding: Finding, job: JobInfo) -> Finding:
    """Why a job has failed: as a process explains it, as SLURM knows it, or as the log ends."""
    trace = first_failed(_traces(run_dir, submission, job))
    message = ending_in_words(job.state, job.exit_code)
    if trace is None:
        return replace(finding, message=f"{message} (it left no log)")
    if trace.tells_cause and (trace.report or job.state not in SLURM_DECIDES):
        message = str(trace.message)
    elif job.state not in SLURM_DECIDES:
        # A process that was killed has no words; those of the others are about missing it.
        killed = srun_words(stage_folder(run_dir, submission.stage), job.job_id)
        message = killed or (None if trace.stopped else trace.message) or message
    return replace(finding, message=message, trace=trace)


def _traces(run_dir: Path, submission: Submission, job: JobInfo) -> list[Trace]:
    """Of the processes of one job."""
    first = submission.job_ids.index(job.job_id) * submission.tasks
    return traces(run_dir, submission.stage, submission.submitted_at, range(first, first + submission.tasks))


# -- on one machine ----------------------------------------------------------------------------------------------------


def of_local(run_dir: Path, stage: str, done: bool) -> Finding:
    """The state of a stage that was never submitted, and that no command is at work on."""
    if done:
        return Finding("done")
    first = first_failed(traces(run_dir, stage))
    if first is None:
        return Finding("to run")
    if first.message is not None:
        return Finding("stopped" if first.stopped else "failed", first.message, trace=first)
    if (run_dir / "stages" / f"{stage}.json").exists():
        return Finding("to run")  # It ended well once; what it left has been deleted.
    return Finding("stopped", f"it ended without a word, as if it had been killed; see {first.log}")
