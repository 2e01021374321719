"""``--dry-run`` on a SLURM profile: the jobs, their scripts, and what SLURM says to them."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from launchers.cluster import scheduler
from launchers.cluster.admission import check_folders, verdicts
from launchers.cluster.chain import Link, link_of, links, live_stages
from launchers.cluster.launch import batches_of
from launchers.cluster.scheduler import Verdict
from launchers.profile import SlurmProfile
from refbert_dist.config import Experiment
from refbert_dist.costs.rates import CORE, CPU, GPU, Rates
from refbert_dist.costs.stages import Place
from refbert_dist.pipeline import Stage


def show_jobs(exp: Experiment, targets: Iterable[str], profile: SlurmProfile, console: Console) -> list[str]:
    """Print the batch scripts and a table of the jobs; returns SLURM's answers, in sentences. Submits nothing."""
    scheduler.require_slurm()
    check_folders(exp, profile)
    live = live_stages(exp.run.dir)
    chain = links(exp, profile, targets, live)
    batches = batches_of(exp, profile, chain)
    for stage, batch in batches.items():
        console.print(f"--- batch script of {stage}", highlight=False)
        console.print(batch.script(), highlight=False, markup=False, soft_wrap=True)
    console.print(_jobs(chain))
    answers = [f"{name}: under way already, as job {submission.job_id}" for name, submission in live.items()]
    for stage, verdict in verdicts(batches).items():
        answers.append(f"{stage}: {_answer(verdict)}")
    return answers


def places_on(exp: Experiment, profile: SlurmProfile, stages: Iterable[Stage]) -> Mapping[str, Place]:
    """What every stage gets on the cluster."""
    return {stage.name: _place(link_of(exp, profile, stage)) for stage in stages}


def _place(link: Link) -> Place:
    gpus, cores = link.resources.gpus_per_node, link.resources.cpus_per_task
    return Place(
        rates=Rates(GPU if gpus else CPU, CORE),
        processes=link.processes,
        threads=1 if gpus else cores,
        cores=link.processes * (cores if gpus else 1),
    )


def _jobs(chain: Iterable[Link]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("partition")
    for column in ("jobs x nodes", "processes", "cores", "GPUs", "minutes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("after")
    for link in chain:
        asked = link.resources
        table.add_row(
            link.stage.name,
            asked.partition or "default",
            f"{link.elements} x {link.nodes}",
            str(link.processes),
            str(link.processes * asked.cpus_per_task),
            str(link.elements * link.nodes * asked.gpus_per_node),
            str(asked.time_min),
            ", ".join(link.after),
        )
    return table


def _answer(verdict: Verdict) -> str:
    if not verdict.accepted:
        return f"SLURM WOULD NOT RUN IT: {verdict.text}"
    found = re.search(r"to start at (\S+) using .* on nodes (\S+)", verdict.text)
    if not found:
        return f"SLURM would take it: {verdict.text}"
    when, nodes = found.groups()
    # A date that no queue reaches stands for a start that SLURM does not know.
    known = when < f"{datetime.date.today().year + 2}"
    return f"SLURM would take it, and start it {f'at {when} ' if known else ''}on {nodes}"
