"""``refbert run`` of a table file: its cells as runs, in turn or as chains of jobs, and what came of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.table import Table as Grid

from launchers.execute import execute
from launchers.options import Where
from launchers.plan import Site, sites_of
from launchers.profile import Profile, SlurmProfile, load_profile
from launchers.readable import duration
from refbert_dist import pipeline
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.costs.extents import Extent, extents
from refbert_dist.data.tokens import Part
from refbert_dist.errors import RefusedError
from refbert_dist.pipeline import STAGES, Stage
from refbert_dist.rundir import started_in
from refbert_dist.table import run
from refbert_dist.table.config import Cell, Table, load_table, stored_table

if TYPE_CHECKING:
    from launchers.cluster.launch import Live


def run_table(path: Path, overrides: Iterable[str], where: Where) -> None:
    """Run the cells that are not done, add the rows of all others to the CSV file, and show the table.

    Raises RefusedError where a cell failed, and where a row stands in the CSV file with another score: whatever else
    could be done is done nevertheless.
    """
    table, profile = load_table(path, overrides), load_profile(where.on)
    if where.dry_run:
        _show_plan(table, profile, Console())
        return
    run.begin(table)
    refusals = _run_cells(table, profile, where)
    conflicts = [line for cell in table.cells if run.is_done(cell) for line in run.collect(table, cell)]
    _show(table)
    if refusals:
        raise RefusedError("; ".join(refusals))
    if conflicts:
        more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
        raise RefusedError(
            f"csv is '{table.csv_path}', which keeps the scores that stand in it: {conflicts[0]}{more}; remove such "
            "rows to take the new scores, or name another csv"
        )


def _run_cells(table: Table, profile: Profile, where: Where) -> list[str]:
    """Run or submit what is missing; returns why some could not be done. After a failure the task is left alone."""
    refused: dict[str, str] = {}
    others: list[tuple[Experiment, Live]] = []
    left = [(number, cell) for number, cell in enumerate(table.cells, start=1) if not run.is_done(cell)]
    for number, cell in left:
        if cell.task in refused:
            continue
        said = f"cell {number} of {len(table.cells)}: {cell.name}, {', '.join(cell.experiment.systems)}"
        typer.echo(said, err=True)
        try:
            if isinstance(profile, SlurmProfile):
                from launchers.cluster.launch import launch

                live = launch(cell.experiment, run.TARGETS, profile, Console(), others)
                others.append((cell.experiment, live))
            else:
                execute(cell.experiment, run.TARGETS, Where(where.on))
                run.collect(table, cell)
        except RefusedError as error:
            refused[cell.task] = f"{cell.name} is not done: {error}"
    if isinstance(profile, SlurmProfile) and where.wait:
        from launchers.cluster.launch import wait

        for _, cell in left:
            try:
                wait(cell.experiment, run.TARGETS)
            except RefusedError as error:
                refused.setdefault(cell.task, f"{cell.name} is not done: {error}")
    return list(refused.values())


def _show(table: Table) -> None:
    """The table, how much of it is there, and where it lies."""
    # It loads plotly, which a plan does without.
    from refbert_dist.table.page import MARKDOWN, write_table

    typer.echo(write_table(table))
    done = sum(map(run.is_done, table.cells))
    typer.echo(f"{done} of {len(table.cells)} cells are done; rows in {table.csv_path}")
    typer.echo(f"{table.run_dir}/{MARKDOWN}  report.html")


def report_table(run_dir: Path) -> Path:
    """Write the page of a table anew; returns its path."""
    from refbert_dist.report.page import FILE_NAME
    from refbert_dist.table.page import write_table

    table = stored_table(run_dir)
    with contextlib.chdir(started_in(run_dir)):
        write_table(table)
    return run_dir / FILE_NAME


# -- the dry run -------------------------------------------------------------------------------------------------------


def _show_plan(table: Table, profile: Profile, console: Console) -> None:
    """Print everything and start nothing."""
    run.check(table)
    console.print(to_yaml(table), highlight=False, markup=False, soft_wrap=True)
    grid = Grid(title=f"{len(table.cells)} cells in {table.run_dir}/cells", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("cell", "systems", "to run"):
        grid.add_column(heading)
    grid.add_column("time", justify="right", no_wrap=True)
    found = {task: extents(exp) for task, exp in table.experiments.items()}
    total = 0.0
    for cell, stages in _to_run(table):
        costs = _site(cell.experiment, found[cell.task], profile).costs
        seconds = sum(costs[stage.name].wall_s for stage in stages if stage.name in costs)
        total += seconds
        names = ", ".join(stage.name for stage in stages)
        grid.add_row(cell.name, ", ".join(cell.experiment.systems), names or "done", duration(seconds) if names else "")
    grid.add_section()
    grid.add_row("all of these", "", "", duration(total))
    console.print(grid)
    typer.echo("time by the clock, one cell after the other; what an earlier cell leaves in the cache is made once")


def _to_run(table: Table) -> Iterator[tuple[Cell, list[Stage]]]:
    """What is left of each cell, in order, but for what an earlier one makes for it."""
    made: set[Path] = set()
    for cell in table.cells:
        stages = []
        for stage in pipeline.missing_stages(cell.experiment, run.TARGETS):
            products = pipeline.products(cell.experiment, stage.name)
            if not products or not products <= made:
                stages.append(stage)
            made |= products
        yield cell, stages


def _site(exp: Experiment, found: Mapping[Part, Extent], profile: Profile) -> Site:
    stages = [stage for stage in STAGES if stage.wanted(exp)]
    if isinstance(profile, SlurmProfile):
        from launchers.cluster.plan import places_on

        return Site.of(exp, found, places_on(exp, profile, stages))
    return next(iter(sites_of(exp, found, profile, [stage.name for stage in stages]).values()))
