"""``--on`` a SLURM profile: check, fetch, submit, and say what was done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from launchers.cluster import scheduler
from launchers.cluster.admission import admit, check_folders
from launchers.cluster.batch import Batch
from launchers.cluster.chain import Link, batch_of, links, live_stages, submit_chain
from launchers.cluster.records import Submission, submitted
from launchers.profile import SlurmProfile
from launchers.watch.run_status import experiment_of, status
from refbert_dist import pipeline
from refbert_dist.artifacts import read_json, write_json, write_text
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.data import corpus, hub
from refbert_dist.errors import RefusedError
from refbert_dist.models.locate import model_folder
from refbert_dist.rundir import open_run

PROFILE, TARGETS = "profile.yaml", "targets.json"
"""In ``RUN_DIR/submitted``: where the run was submitted to last, and what for."""
POLL_INTERVAL_S = 2.0


Live = Mapping[str, Submission]
"""Stages whose jobs have not ended, with these jobs."""


def launch(
    exp: Experiment,
    targets: Iterable[str],
    profile: SlurmProfile,
    console: Console,
    others: Iterable[tuple[Experiment, Live]] = (),
) -> Live:
    """Submit what is missing for ``targets`` as a chain of jobs, and return all that is under way then.

    What one of the ``others`` is about to leave in the cache is not made again, but waited for.
    """
    targets = tuple(targets)
    scheduler.require_slurm()
    pipeline.check(exp, targets)
    check_folders(exp, profile)
    with open_run(exp):
        live = made_by_others(exp, targets, others) | live_stages(exp.run.dir)
        chain = links(exp, profile, targets, live)
        if chain:
            admit(batches_of(exp, profile, chain))
            if profile.offline:
                fetch(exp)
            pipeline.register(exp)
            ours = submit_chain(exp, profile, chain, live)
            write_text(submitted(exp.run.dir) / PROFILE, to_yaml(profile))
            write_json(submitted(exp.run.dir) / TARGETS, targets)
    if not chain and not live:
        console.print(f"nothing to do: everything that {', '.join(targets)} needs is in {exp.run.dir}")
        return live
    if chain:
        console.print(_submitted(ours))
    for name, submission in live.items():
        console.print(f"{name} is under way already, as job {submission.job_id}", highlight=False)
    console.print(f"refbert status {exp.run.dir}   tells how far they are", highlight=False, soft_wrap=True)
    return live | ({each.stage: each for each in ours} if chain else {})


def made_by_others(
    exp: Experiment, targets: Iterable[str], others: Iterable[tuple[Experiment, Live]]
) -> dict[str, Submission]:
    """Missing stages whose products, all of them, are about to be made by the jobs of another run."""
    wanted = {stage.name: pipeline.products(exp, stage.name) for stage in pipeline.missing_stages(exp, targets)}
    return {
        name: live[name]
        for other, live in others
        for name, paths in wanted.items()
        if paths and name in live and paths <= pipeline.products(other, name)
    }


def last_start(run_dir: Path) -> tuple[Experiment, tuple[str, ...], str]:
    """A run's settings, its targets and its profile, as it was started last; all of it and here if never submitted."""
    exp, folder = experiment_of(run_dir), submitted(run_dir.resolve())
    if not (folder / PROFILE).exists():
        return exp, pipeline.last_targets(exp), "local"
    return exp, tuple(read_json(folder / TARGETS)), str(folder / PROFILE)


def wait(exp: Experiment, targets: Iterable[str]) -> None:
    """Stay until no job of the run is left; raises :class:`RefusedError` when that leaves something undone."""
    seen: dict[str, str] = {}
    while True:
        live = live_stages(exp.run.dir)
        found = status(exp.run.dir)
        for stage in found.stages:
            if seen.get(stage.name, stage.state) != stage.state or (stage.name not in seen and stage.name in live):
                Console(stderr=True).print(f"{stage.name}: {stage.state}", highlight=False)
            seen[stage.name] = stage.state
        if not live:
            break
        time.sleep(POLL_INTERVAL_S)
    missing = pipeline.missing_stages(exp, targets)
    if missing:
        messages = {stage.name: stage.message for stage in found.stages}
        raise RefusedError(messages[missing[0].name] or f"{missing[0].name} is not done; see refbert status")


def fetch(exp: Experiment) -> None:
    """Bring what only the network has into local caches, which the nodes must see (``HF_HOME``)."""
    model_folder(exp.teacher.model)
    if exp.corpus and corpus.is_remote(exp.corpus):
        corpus.download(exp.corpus)
    if exp.task and hub.is_remote(exp.task):
        hub.download(exp.task)


def batches_of(exp: Experiment, profile: SlurmProfile, chain: Iterable[Link]) -> dict[str, Batch]:
    """As they would be sent, but for the numbers of the jobs that they wait for."""
    code = submitted(exp.run.dir.resolve()) / "code"
    return {link.stage.name: batch_of(exp, profile, link, code) for link in chain}


def _submitted(ours: Iterable[Submission]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("stage", "job", "jobs", "nodes each", "processes each", "after"):
        table.add_column(column, no_wrap=column != "after", justify="right" if column[-4:] == "each" else "left")
    for each in ours:
        table.add_row(
            each.stage, each.job_id, str(each.elements), str(each.nodes), str(each.tasks), ", ".join(each.after)
        )
    return table
