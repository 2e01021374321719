"""How far a run is, whoever started it, wherever, and whether or not SLURM still knows of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launchers.cluster import scheduler
from launchers.cluster.formats import JobInfo
from launchers.cluster.reasons import in_words
from launchers.cluster.records import Submission, submissions
from launchers.watch.stage_progress import last_sign, progress, shards
from launchers.watch.stage_states import Finding, State, of_local, of_submitted
from refbert_dist.config import Experiment
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.pipeline import STAGES, missing_stages
from refbert_dist.rundir import EXPERIMENT, is_in_use, is_table, started_in, stored_experiment
from refbert_dist.tracking.files import read_json_or_none

BEGUN: tuple[State, ...] = ("running", "pending", "stopped", "failed", "cancelled", "lost")
"""States of stages of which it is worth knowing how far they came."""
ENDED_BADLY: tuple[State, ...] = ("failed", "lost", "cancelled", "stopped")
HOW_ENDED = {"failed": "has failed", "lost": "was lost", "cancelled": "was cancelled", "stopped": "was stopped"}


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run."""

    name: str
    title: str
    """What it does, for people."""
    finding: Finding
    submission: Submission | None
    progress: Mapping[str, Any] | None
    """How far it came: ``name``, ``done``, ``total``, ``unit``, ``rate`` (units/s), ``eta_s``, ``age_s``."""
    shards: int | None
    """Committed so far, of a stage that is under way and leaves shards."""
    seconds: float | None
    """That it took, once it is done; None where another run did it."""

    @property
    def state(self) -> State:
        """The state of the stage."""
        return self.finding.state

    @property
    def message(self) -> str | None:
        """What a person should know of it, if anything."""
        return self.finding.message

    def to_json(self) -> dict[str, Any]:
        """See :meth:`RunStatus.to_json`."""
        return {
            "name": self.name,
            "title": self.title,
            "state": self.state,
            "message": self.message,
            "jobs": [_job_json(job) for job in self.finding.jobs],
            "progress": self.progress,
            "shards": self.shards,
            "seconds": self.seconds,
        }


def _job_json(job: JobInfo) -> dict[str, Any]:
    return {
        "id": job.job_id,
        "state": job.state,
        "reason": in_words(job.reason) if job.reason else None,
        "node": job.nodes or None,
        "elapsed_s": job.elapsed_s,
        "restarts": job.restarts,
    }


@dataclass(frozen=True)
class RunStatus:
    """A run, as far as can be known now."""

    run_dir: Path
    stages: tuple[StageStatus, ...]
    in_use: bool
    """Whether a command holds the run's lock now."""
    note: str | None
    """Why SLURM was not asked, if there was something to ask."""

    @property
    def state(self) -> State:
        """Of the whole run: ``running`` and ``pending`` if it goes on by itself, else how it ended."""
        states = [stage.state for stage in self.stages]
        if self.in_use or "running" in states:
            return "running"
        if set(states) <= {"done", "not needed"}:
            return "done"
        if any(stage.finding.goes_on for stage in self.stages):
            return "pending"
        ended = next((state for state in ENDED_BADLY if state in states), None)
        return ended or ("pending" if "waiting" in states else "to run")

    def to_json(self) -> dict[str, Any]:
        """For programs; the keys stay.

        ``run_dir``, ``state``, ``note`` (null, or why SLURM was not asked), and ``stages``, each with ``name``,
        ``title``, ``state`` (see :data:`launchers.watch.stage_states.State`), ``message`` (a sentence, or null),
        ``jobs`` (each: ``id``; ``state``, SLURM's own or UNKNOWN; ``reason`` it waits for; ``node``; ``elapsed_s``;
        ``restarts``), ``progress`` (null, or ``name``, ``done``, ``total``, ``unit``, ``rate`` in units/s, ``eta_s``,
        ``age_s``), ``shards`` (null, or committed so far) and ``seconds`` (null, or what the finished stage took).
        """
        return {
            "run_dir": str(self.run_dir),
            "state": self.state,
            "note": self.note,
            "stages": [stage.to_json() for stage in self.stages],
        }


def status(run_dir: Path) -> RunStatus:
    """Find out about every stage of the experiment in ``run_dir``; changes nothing."""
    exp = experiment_of(run_dir)
    submitted = submissions(run_dir)
    infos, note = _ask_slurm(submitted)
    # Its paths may be relative to the folder that it was started from.
    with contextlib.chdir(started_in(run_dir)):
        in_use = is_in_use(exp.run.dir)
        return RunStatus(run_dir, tuple(_stages(exp, submitted, infos, in_use)), in_use, note)


def experiment_of(run_dir: Path) -> Experiment:
    """The experiment of a run directory, wherever it lies now; :class:`UserError` for a folder that is none."""
    if is_table(run_dir):
        raise UserError(f"'{run_dir}' is the directory of a table; name one of its runs, in {run_dir}/cells")
    if not (run_dir / EXPERIMENT).exists():
        raise UserError(
            f"'{run_dir}' is not a run directory, because it has no {EXPERIMENT}; give the folder that run.dir names"
        )
    return stored_experiment(run_dir, [f"run.dir={json.dumps(str(run_dir.resolve()))}"])


def _ask_slurm(submitted: Mapping[str, Submission]) -> tuple[dict[str, JobInfo] | None, str | None]:
    """What SLURM knows of all jobs; None and the reason where it cannot be asked."""
    try:
        return scheduler.jobs(submission.job_id for submission in submitted.values()), None
    except RefusedError as error:
        return None, f"{error}; what the jobs themselves have noted is shown instead"


def _stages(
    exp: Experiment, submitted: Mapping[str, Submission], infos: Mapping[str, JobInfo] | None, in_use: bool
) -> Iterator[StageStatus]:
    run_dir = exp.run.dir
    wanted = [stage for stage in STAGES if stage.wanted(exp)]
    missing = [stage.name for stage in missing_stages(exp)]
    findings: dict[str, Finding] = {}
    for stage in wanted:
        submission, done = submitted.get(stage.name), stage.done(exp)
        finding = of_submitted(run_dir, submission, infos, done) if submission else of_local(run_dir, stage.name, done)
        if not done and stage.name not in missing and not finding.goes_on:
            finding = replace(finding, state="not needed", message=None)
        findings[stage.name] = finding
    if in_use and not any(finding.goes_on for finding in findings.values()):
        # Of a command at work nothing but its lock is known; the stage that wrote last is the one it is in.
        at_work = max(missing, key=lambda name: last_sign(run_dir, name), default=None)
        if at_work and last_sign(run_dir, at_work):
            findings[at_work] = Finding("running")
    for stage in wanted:
        finding = _blame(stage.name, findings, submitted)
        begun = finding.state in BEGUN
        record = read_json_or_none(run_dir / "stages" / f"{stage.name}.json") if finding.state == "done" else None
        yield StageStatus(
            stage.name,
            stage.title,
            finding,
            submitted.get(stage.name),
            progress(run_dir, stage.name) if begun else None,
            shards(exp, stage.name) if begun else None,
            record["seconds"] if record else None,
        )


def _blame(name: str, findings: Mapping[str, Finding], submitted: Mapping[str, Submission]) -> Finding:
    """Of jobs that never started, the stage that is the cause."""
    finding = findings[name]
    never_started = all(not job.nodes for job in finding.jobs)
    if not (finding.jobs and never_started and finding.state in ("cancelled", "waiting")):
        return finding
    cause = name
    while before := next(
        (
            before
            for before in submitted[cause].after
            if before in submitted and findings[before].state in ENDED_BADLY and not findings[before].goes_on
        ),
        None,
    ):
        cause = before
    if cause == name:
        return finding
    return replace(finding, message=f"it never starts, because {cause} {HOW_ENDED[findings[cause].state]}")
