"""``refbert run`` of a table file: its cells as runs, in turn or as chains of jobs, and what came of them.

Several such commands may work on a table at once, as workers on a cache do: what is done, and who is at work on what,
is in the cells' directories alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from refbert_dist.engine.stop import watching_signals
from refbert_dist.errors import InUseError, RefusedError
from refbert_dist.pipeline import STAGES, Stage
from refbert_dist.rundir import started_in
from refbert_dist.table import run
from refbert_dist.table.choice import FOLDER, choice_of, decide
from refbert_dist.table.config import Cell, Table, load_table, stored_table

if TYPE_CHECKING:
    from launchers.cluster.launch import Live

POLL_S = 10.0
"""Between looks at cells that other commands are at work on."""


def run_table(path: Path, overrides: Iterable[str], where: Where) -> None:
    """Run the cells that are not done, add the rows of all others to the CSV file, and show the table.

    Where rates are to be chosen, the cells for that come first.

    Raises RefusedError where a cell failed, and where a row stands in the CSV file with another score: whatever else
    could be done is done nevertheless.
    """
    table, profile = decide(load_table(path, overrides)), load_profile(where.on)
    if where.dry_run:
        for each in (choice_of(table), table):
            if each:
                _show_plan(each, profile, Console())
        return
    work = _Work(table)
    if isinstance(profile, SlurmProfile):
        _submit(work, profile, where)
    else:
        _run_here(work, where)
    _show(work.table)
    if work.refused:
        raise RefusedError("; ".join(work.refused.values()))
    if conflicts := work.conflicts:
        more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
        raise RefusedError(
            f"csv is '{table.csv_path}', which keeps the scores that stand in it: {conflicts[0]}{more}; remove such "
            "rows to take the new scores, or name another csv"
        )


class _Work:
    """A table, the one on whose scores its rates are chosen, and what came of their cells so far."""

    def __init__(self, table: Table) -> None:
        """Check everything, and note the tables in their run directories."""
        self.table = table
        self.refused: dict[str, str] = {}
        """By task why some of its cells could not be done; after a failure the rest of the task is left alone."""
        self.conflicts: list[str] = []
        self._choice = choice_of(table)
        self._collected: set[Path] = set()
        for each in self._tables:
            run.begin(each)
        self.advance()

    @property
    def _tables(self) -> tuple[Table, ...]:
        return (self._choice, self.table) if self._choice else (self.table,)

    def advance(self) -> bool:
        """Add the rows of cells that are done by now, by whatever command, and settle what these decide.

        Returns whether there were any that had not been known to be done.
        """
        known = len(self._collected)
        for table in self._tables:
            for cell in run.settled(table):
                if cell.experiment.run.dir not in self._collected and run.is_done(cell):
                    self.conflicts += run.collect(table, cell)
                    self._collected.add(cell.experiment.run.dir)
        decided = decide(self.table)
        if decided.rate_factors != self.table.rate_factors:
            run.begin(decided)
            self.table = decided
        return len(self._collected) > known

    def left(self) -> list[Cell]:
        """Cells that can be run but are not done; those that decide something come first."""
        return [
            cell
            for table in self._tables
            for cell in run.settled(table)
            if cell.task not in self.refused and not run.is_done(cell)
        ]

    def announce(self, cell: Cell, targets: Sequence[str] = run.TARGETS) -> None:
        """Say what is begun."""
        table = next(each for each in self._tables if cell.task in each.tasks)
        number = 1 + [each.name for each in table.cells].index(cell.name)
        of = f"{len(table.cells)} held out" if table is self._choice else str(len(table.cells))
        what = ", ".join(cell.experiment.systems) if targets == run.TARGETS else "ahead of its turn: teacher and states"
        typer.echo(f"cell {number} of {of}: {cell.name}, {what}", err=True)


def _run_here(work: _Work, where: Where) -> None:
    """Run what is missing, beside other commands that do the same."""
    while found := _next(work):
        cell, targets = found
        work.announce(cell, targets)
        try:
            execute(cell.experiment, targets, Where(where.on))
        except InUseError:
            # Another command was quicker.
            continue
        except RefusedError as error:
            work.refused[cell.task] = f"{cell.name} is not done: {error}"
        work.advance()


def _next(work: _Work) -> tuple[Cell, tuple[str, ...]] | None:
    """The next cell to run, and what for, once there is one that need not wait for others; None when all is done."""
    waited_for: list[str] = []
    with watching_signals():
        while (left := work.left()) or work.advance():
            if not left:
                # What others have just ended may have settled further cells.
                continue
            if found := run.next_cell(left):
                # Another command may have done it since ``left`` was made; now nobody is at work on it.
                if not run.is_done(found[0]):
                    return found
                continue
            others = [each.name for each in run.under_way(left)]
            # None, if they have ended since.
            if others and others != waited_for:
                typer.echo(f"waiting for {', '.join(others)}, where another command is at work", err=True)
            waited_for = others
            time.sleep(POLL_S)
            work.advance()
    return None


def _submit(work: _Work, profile: SlurmProfile, where: Where) -> None:
    """Submit what is missing; with ``--wait`` also what is settled by that."""
    from launchers.cluster.launch import launch, wait

    others: list[tuple[Experiment, Live]] = []
    tried: set[Path] = set()
    while left := [cell for cell in work.left() if cell.experiment.run.dir not in tried]:
        tried |= {cell.experiment.run.dir for cell in left}
        for cell in left:
            if cell.task in work.refused:
                continue
            work.announce(cell)
            try:
                others.append((cell.experiment, launch(cell.experiment, run.TARGETS, profile, Console(), others)))
            except RefusedError as error:
                work.refused[cell.task] = f"{cell.name} is not done: {error}"
        if not where.wait:
            break
        for cell in left:
            try:
                wait(cell.experiment, run.TARGETS)
            except RefusedError as error:
                work.refused.setdefault(cell.task, f"{cell.name} is not done: {error}")
        work.advance()


def _show(table: Table) -> None:
    """The table, how much of it is there, and where it lies."""
    # It loads plotly, which a plan does without.
    from refbert_dist.table.page import MARKDOWN, write_table

    if choice := choice_of(table):
        write_table(choice)
    typer.echo(write_table(table))
    if table.undecided:
        typer.echo(
            f"the rates for {', '.join(table.undecided)} are not chosen yet: see {table.run_dir / FOLDER}, and run the "
            "same command again once its cells are done"
        )
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
