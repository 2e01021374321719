"""``refbert tune``: what a person is told of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from launchers.plan import show_plan
from launchers.profile import load_profile
from launchers.readable import count
from refbert_dist.artifacts import read_json
from refbert_dist.config import to_yaml
from refbert_dist.errors import UserError
from refbert_dist.pipeline import stage_named
from refbert_dist.rundir import is_search
from tune.config import Search
from tune.front import objectives_of
from tune.search import STAGE, check
from tune.space import grid_size, shared_experiment


def require_begun(search: Search) -> None:
    """For ``--resume``: raise :class:`UserError` where ``run.dir`` holds no search."""
    run_dir = search.experiment.run.dir
    if not is_search(run_dir):
        raise UserError(f"run.dir is '{run_dir}', which holds no search to resume; leave --resume away to begin one")


def show_search(search: Search, on: str, console: Console) -> None:
    """``--dry-run``: print everything and start nothing."""
    check(search)
    console.print(to_yaml(search), highlight=False, markup=False, soft_wrap=True)
    shared = shared_experiment(search)
    show_plan(shared, stage_named(STAGE).needs, load_profile(on), console)
    size = grid_size(search)
    points = f"{size:,} points" if size else "endless points"
    console.print(
        f"then up to {search.look.trials} trials of {search.trial.cores} CPU(s) and {search.trial.gpus:g} GPU(s), "
        f"chosen by {search.look.algorithm} from {points}; nothing above is computed again for any of them",
        highlight=False,
        soft_wrap=True,
    )


def show_front(search: Search, console: Console) -> None:
    """The Pareto front of the finished trials (for one objective its best), best score first."""
    objectives = objectives_of(search)
    assert search.experiment.task is not None
    leading = search.metric("score")
    rows = read_json(search.experiment.run.dir / "results.json")
    scored = [row for row in rows if row["metric"] == leading]
    front = sorted((row for row in scored if row["on_front"]), key=lambda row: -row["score"])
    kind, names = "Pareto front of" if len(objectives) > 1 else "best", ", ".join(each.name for each in objectives)
    title = f"{search.experiment.task.name}, {front[0]['n']} held-out rows: {kind} {names}"
    console.print(title, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("trial")
    for name in search.space:
        table.add_column(name.rpartition(".")[2], justify="right")
    timed = any(row["latency_ms"] is not None for row in front)
    for name in (leading, "params", "GFLOP", *(["ms"] if timed else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in front:
        table.add_row(
            row["trial"],
            *(_short(row["point"][name]) for name in search.space),
            f"{row['score']:.4f}",
            count(row["params"]),
            f"{row['gflops']:.3f}",
            *([f"{row['latency_ms']:.2f}"] if timed else []),
        )
    console.print(table)
    _show_counts(search.experiment.run.dir, scored, console)


def _show_counts(run_dir: Path, scored: Sequence[Mapping[str, Any]], console: Console) -> None:
    states = [row["state"] for row in scored]
    passes = int(sum(row["teacher_samples"] for row in scored))
    for line in (
        f"{states.count('finished')} trials finished, {states.count('stopped')} ended early; they ran the teacher on "
        f"{passes:,} samples",
        f"results  {run_dir / 'results.json'}",
        f"report   {run_dir / 'report.html'}",
        f"next     refbert tune SEARCH.yaml run.dir={run_dir} --export-best",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
