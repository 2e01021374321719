"""``refbert status`` and ``refbert cancel``, for a run that may be anywhere."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launchers.cluster import scheduler
from launchers.cluster.reasons import in_words
from launchers.cluster.records import submissions
from launchers.readable import duration
from launchers.watch.run_status import ENDED_BADLY, RunStatus, StageStatus, experiment_of, status
from refbert_dist.tracking.progress import format_duration

__all__ = ["RunStatus", "StageStatus", "cancel_run", "show_status", "status"]

WIDE = 100
"""Columns of a terminal that has room for the names of nodes as well."""
OLD_S = 60.0
"""Progress that is older than this while its stage runs is shown with its age."""
STYLES = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "cancelled": "red", "stopped": "yellow"}


def show_status(run_dir: Path, as_json: bool, console: Console) -> None:
    """Print a line for each stage, then a sentence for each problem; or everything as JSON."""
    found = status(run_dir)
    if as_json:
        console.print(json.dumps(found.to_json(), indent=1), highlight=False, markup=False, soft_wrap=True)
        return
    console.print(f"{run_dir}: {found.state}", highlight=False, markup=False, soft_wrap=True)
    console.print(_table(found, with_nodes=console.width >= WIDE))
    for line in _remarks(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def cancel_run(run_dir: Path, console: Console) -> None:
    """End all jobs of a run that have not ended. Raises :class:`RefusedError` if SLURM does not answer."""
    experiment_of(run_dir)  # Refuses what is no run.
    submitted = submissions(run_dir)
    unfinished = {job_id.partition("_")[0] for job_id in scheduler.queued(each.job_id for each in submitted.values())}
    live = [submission for submission in submitted.values() if submission.job_id in unfinished]
    # Those that wait for others were submitted after them; ended first, one by one, none starts in between.
    for submission in reversed(live):
        scheduler.cancel([submission.job_id])
        console.print(f"cancelled {submission.stage}, job {submission.job_id}", highlight=False, soft_wrap=True)
    if live:
        console.print(f"to go on later: refbert resume {run_dir}", highlight=False, soft_wrap=True)
    else:
        console.print(f"nothing to cancel: no job of {run_dir} is left", highlight=False, soft_wrap=True)


def _table(found: RunStatus, with_nodes: bool) -> Table:
    submitted = any(stage.submission for stage in found.stages)
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if submitted:
        table.add_column("job", no_wrap=True)
        if with_nodes:
            table.add_column("nodes", no_wrap=True)
    table.add_column("time", no_wrap=True, justify="right")
    table.add_column("how far", no_wrap=True, overflow="ellipsis", ratio=1)
    undone = [stage.name for stage in found.stages if stage.state != "done"]
    for stage in found.stages:
        state, counted = stage.state, stage.finding.counted
        row: list[str | Text] = [stage.name, Text(f"{counted} {state}" if counted else state, STYLES.get(state, ""))]
        if submitted:
            row.append(stage.submission.job_id if stage.submission else "")
            if with_nodes:
                row.append(_nodes(stage))
        table.add_row(*row, _time(stage), Text("  ".join(how_far(stage, undone))))
    return table


def _nodes(stage: StageStatus) -> str:
    """Where it runs, or where it ran last."""
    jobs = [job for job in stage.finding.jobs if not job.is_over] or stage.finding.jobs
    return ",".join(dict.fromkeys(job.nodes for job in jobs if job.nodes))


def _time(stage: StageStatus) -> str:
    if stage.seconds is not None:
        return duration(stage.seconds)
    times = [job.elapsed_s for job in stage.finding.jobs if job.nodes and job.elapsed_s is not None]
    return duration(max(times)) if times and stage.state != "done" else ""


def how_far(stage: StageStatus, undone: Container[str]) -> Iterator[str]:
    """How far a stage is; what matters most comes first, for the end is cut off where the terminal is narrow."""
    finding, progress = stage.finding, stage.progress
    if finding.state == "pending" and finding.job and not finding.message:
        yield in_words(finding.job.reason)
    if finding.state == "waiting" and stage.submission:
        yield "for " + ", ".join(name for name in stage.submission.after if name in undone)
    if progress:
        done, total, unit, rate, eta_s = (progress[name] for name in ("done", "total", "unit", "rate", "eta_s"))
        if total:
            yield f"{100 * done // total} %"
        if finding.state == "running":
            if progress["age_s"] > OLD_S:
                yield f"{duration(progress['age_s'])} ago"
            elif eta_s is not None:
                yield f"ETA {format_duration(eta_s)}"
        yield f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
        if rate is not None and finding.state == "running":
            yield f"{rate:,.3g} {unit}/s" if rate < 100 else f"{rate:,.0f} {unit}/s"
    if stage.shards:
        yield f"{stage.shards:,} shards"
    if progress and progress["name"] != stage.name:
        yield str(progress["name"])
    if restarts := sum(job.restarts or 0 for job in finding.jobs):
        yield f"{restarts} restart{'s' * (restarts > 1)}"


def _remarks(found: RunStatus) -> Iterator[str]:
    if found.note:
        yield found.note
    by_message: dict[str, list[str]] = {}
    for stage in found.stages:
        if stage.message:
            by_message.setdefault(stage.message, []).append(stage.name)
    for message, names in by_message.items():
        yield f"{', '.join(names)}: {message}"
    if any(stage.state == "failed" for stage in found.stages):
        yield f"to see more: refbert logs {found.run_dir} --failed"
    if any(stage.state in ENDED_BADLY and not stage.finding.goes_on for stage in found.stages):
        yield f"to go on: refbert resume {found.run_dir}"
