"""A run as jobs that wait for one another: what is missing is submitted, all of it or nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.cluster import scheduler
from launchers.cluster.batch import Batch, SubmissionError
from launchers.cluster.job import StageJob
from launchers.cluster.records import Submission, add_submissions, now, stage_folder, submissions
from launchers.cluster.snapshot import Snapshot, take_snapshot
from launchers.profile import Resources, SlurmProfile
from refbert_dist import pipeline
from refbert_dist.config import Experiment
from refbert_dist.engine.reports import error_path
from refbert_dist.errors import UserError
from refbert_dist.pipeline import STAGES, Stage, stage_named


@dataclass(frozen=True)
class Link:
    """One stage of a chain: the jobs that it becomes, and the stages whose jobs they wait for."""

    stage: Stage
    resources: Resources
    elements: int
    """Jobs; several are an array."""
    nodes: int
    """Of each job."""
    tasks: int
    """Processes on each node."""
    after: tuple[str, ...]
    """Stages, submitted with this one or before."""

    @property
    def processes(self) -> int:
        """Of all jobs together."""
        return self.elements * self.nodes * self.tasks


def links(exp: Experiment, profile: SlurmProfile, targets: Iterable[str], live: Container[str] = ()) -> list[Link]:
    """What must be submitted for ``targets``, in order; the stages in ``live`` have jobs already."""
    missing = pipeline.missing_stages(exp, targets)
    names = {stage.name for stage in missing}
    behind: dict[str, set[str]] = {}
    found = []
    for stage in missing:
        before = set(_waits_for(stage, names))
        behind[stage.name] = before.union(*(behind[name] for name in before))
        # What a job waits for anyway, because another one does that it waits for, would only make the lists longer.
        after = before.difference(*(behind[name] for name in before))
        if stage.name not in live:
            found.append(link_of(exp, profile, stage, after))
    return found


def link_of(exp: Experiment, profile: SlurmProfile, stage: Stage, after: Iterable[str] = ()) -> Link:
    """How a stage runs on the cluster."""
    resources = profile.resources(stage.name)
    if stage.workers == "one":
        resources = resources.model_copy(update={"gpus_per_node": min(1, resources.gpus_per_node)})
    if stage.workers == "nodes":
        cores = resources.cpus_per_task * resources.tasks
        resources = resources.model_copy(update={"tasks_per_node": 1, "cpus_per_task": cores})
    order = [each.name for each in STAGES]
    return Link(stage, resources, *_shape(exp, stage, resources), tuple(sorted(after, key=order.index)))


def _shape(exp: Experiment, stage: Stage, resources: Resources) -> tuple[int, int, int]:
    """Jobs of a stage, nodes of each, and processes on each of these."""
    if stage.workers == "one":
        return 1, 1, 1
    size = stage.group_size(exp)
    if size is None:
        return 1, resources.nodes, resources.tasks
    nodes = -(-size // resources.tasks)
    if nodes * resources.tasks % size or resources.nodes < nodes:
        raise UserError(
            f"cache.group_processes is {size}, but the profile gives {stage.name} {resources.nodes} node(s) of "
            f"{resources.tasks} processes; set stages.{stage.name}.tasks_per_node and nodes so that whole groups fit"
        )
    return resources.nodes // nodes, nodes, resources.tasks


def _waits_for(stage: Stage, submitted: set[str]) -> Iterator[str]:
    """The submitted stages whose end a stage has to wait for."""
    seen: set[str] = set()
    waiting = list(stage.needs)
    if stage.workers == "world":
        # They write the run's metrics, and appending from two nodes at once loses lines on a network file system.
        before = STAGES[: STAGES.index(stage)]
        waiting += [other.name for other in before if other.workers == "world" and other.name in submitted][-1:]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in submitted:
            yield name
        else:
            waiting += stage_named(name).needs


def batch_of(exp: Experiment, profile: SlurmProfile, link: Link, code: Path, after: Sequence[str] = ()) -> Batch:
    """How a link is submitted; ``after``: dependencies as sbatch takes them."""
    run_dir = exp.run.dir.resolve()
    reports = error_path(run_dir, link.stage.name, "*")
    return Batch(
        name=f"{run_dir.name}.{link.stage.name}",
        folder=stage_folder(run_dir, link.stage.name),
        reports=f"'{reports.parent}'/{reports.name}",
        code=code,
        profile=profile,
        resources=link.resources,
        nodes=link.nodes,
        tasks=link.tasks,
        elements=link.elements,
        stands_together=link.stage.group_size(exp) in (None, link.nodes * link.tasks),
        after=tuple(after),
    )


def live_stages(run_dir: Path) -> dict[str, Submission]:
    """Stages whose jobs SLURM has not ended yet, by name."""
    found = submissions(run_dir)
    if not found:
        return {}
    scheduler.require_slurm()
    unfinished = scheduler.queued(submission.job_id for submission in found.values())
    return {name: each for name, each in found.items() if any(job in unfinished for job in each.job_ids)}


def check_not_live(run_dir: Path) -> None:
    """Raise :class:`UserError` where jobs of this run are under way: what runs here must not meet them."""
    if submissions(run_dir) and (live := live_stages(run_dir)):
        jobs = ", ".join(f"{submission.job_id} ({name})" for name, submission in live.items())
        raise UserError(
            f"run.dir '{run_dir}' has SLURM jobs under way: {jobs}; wait for them, or end them with refbert cancel "
            f"{run_dir}"
        )


def submit_chain(
    exp: Experiment, profile: SlurmProfile, chain: Sequence[Link], live: Mapping[str, Submission]
) -> list[Submission]:
    """Submit a chain beside jobs that are ``live``, all of it: when SLURM refuses one, nothing is left behind.

    Raises :class:`UserError` with SLURM's reason.
    """
    snapshot = take_snapshot(exp)
    for link in chain:
        for stale in error_path(exp.run.dir, link.stage.name, 0).parent.glob(error_path("", link.stage.name, "*").name):
            stale.unlink()
    done = dict(live)
    ours: list[Submission] = []
    for link in chain:
        try:
            done[link.stage.name] = _submit(exp, profile, link, snapshot, done)
        except BaseException as error:
            scheduler.cancel([submission.job_id for submission in ours])
            if isinstance(error, SubmissionError):
                raise UserError(_refusal(link, str(error), len(ours))) from error
            raise
        ours.append(done[link.stage.name])
    add_submissions(exp.run.dir, ours)
    return ours


def _submit(
    exp: Experiment, profile: SlurmProfile, link: Link, snapshot: Snapshot, done: dict[str, Submission]
) -> Submission:
    # What an array leaves undone is what all its jobs have left undone; the next stage looks for itself.
    after = [f"{'afterok' if done[name].elements == 1 else 'afterany'}:{done[name].job_id}" for name in link.after]
    work = StageJob(link.stage.name, str(snapshot.experiment), profile.restarts)
    job_id = batch_of(exp, profile, link, snapshot.code, after).submit(work)
    return Submission(link.stage.name, job_id, link.elements, link.nodes, link.nodes * link.tasks, link.after, now())


def _refusal(link: Link, words: str, before: int) -> str:
    cancelled = f"; the {before} job(s) submitted before it are cancelled" if before else ""
    return f"SLURM refuses the job of {link.stage.name}: {words}{cancelled}; change the profile"
