"""``refbert status`` of a table: a line for each cell."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from launchers.watch.run_status import ENDED_BADLY, status
from launchers.watch.stage_states import State
from launchers.watch.status import STYLES, how_far
from refbert_dist.rundir import EXPERIMENT, started_in
from refbert_dist.table.choice import all_cells
from refbert_dist.table.config import Cell, stored_table
from refbert_dist.table.run import is_done

ORDER: tuple[State, ...] = ("running", "pending", *ENDED_BADLY, "to run", "done")
"""What one of the cells is in first makes the state of the table."""


@dataclass(frozen=True)
class CellStatus:
    """One cell of a table."""

    cell: str
    systems: tuple[str, ...]
    state: State
    stage: str = ""
    """That is under way, or was when it ended."""
    message: str = ""
    """How far that is, or what a person should know of it."""


def show_table_status(run_dir: Path, as_json: bool, console: Console) -> None:
    """Print a line for each cell; or everything as JSON: ``run_dir``, ``state``, ``cells`` as :class:`CellStatus`."""
    with contextlib.chdir(started_in(run_dir)):
        cells = [_status(cell) for cell in all_cells(stored_table(run_dir))]
    state = min((cell.state for cell in cells), key=ORDER.index)
    if as_json:
        found = {"run_dir": str(run_dir), "state": state, "cells": [asdict(cell) for cell in cells]}
        console.print(json.dumps(found, indent=1), highlight=False, markup=False, soft_wrap=True)
        return
    done = sum(cell.state == "done" for cell in cells)
    said = f"{run_dir}: {state}, {done} of {len(cells)} cells done"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    grid = Grid(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    for heading in ("cell", "state", "stage"):
        grid.add_column(heading, no_wrap=True)
    grid.add_column("how far", no_wrap=True, overflow="ellipsis", ratio=1)
    for cell in cells:
        grid.add_row(cell.cell, Text(cell.state, STYLES.get(cell.state, "")), cell.stage, Text(cell.message))
    console.print(grid)


def begun_cells(run_dir: Path) -> list[Path]:
    """Run directories of the cells that were started."""
    folders = [cell.experiment.run.dir for cell in all_cells(stored_table(run_dir))]
    return [folder for folder in folders if (folder / EXPERIMENT).exists()]


def _status(cell: Cell) -> CellStatus:
    folder, systems = cell.experiment.run.dir, cell.experiment.systems
    if is_done(cell) or not (folder / EXPERIMENT).exists():
        return CellStatus(cell.name, systems, "done" if is_done(cell) else "to run")
    found = status(folder)
    at = next((stage for stage in found.stages if stage.state not in ("done", "not needed")), found.stages[-1])
    undone = [stage.name for stage in found.stages if stage.state != "done"]
    return CellStatus(cell.name, systems, found.state, at.name, at.message or "  ".join(how_far(at, undone)))
