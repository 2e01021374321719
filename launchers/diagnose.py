"""``refbert diagnose``: what a finished run's students make of their references."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from launchers.watch.run_status import experiment_of
from refbert_dist.diagnostics.tables import sheets
from refbert_dist.errors import UserError
from refbert_dist.rundir import is_search, started_in


def diagnose(run_dir: Path, dry_run: bool) -> None:
    """Compute, write ``RUN_DIR/diagnostics.json``, and show its tables."""
    # It needs torch, which only what runs may load.
    from refbert_dist.diagnostics import run as diagnostics
    from refbert_dist.tracking.quiet import quiet_libraries

    exp = experiment_of(run_dir)
    if is_search(run_dir):
        raise UserError(f"'{run_dir}' is the directory of a search; give that of one of its trials, or its best run")
    quiet_libraries()
    # Its paths may be relative to the folder that it was started from.
    with contextlib.chdir(started_in(run_dir)):
        if dry_run:
            diagnostics.check(exp)
            typer.echo(f"would write {exp.run.dir / diagnostics.FILE_NAME}")
            return
        found = diagnostics.diagnose(exp)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for sheet in sheets(found):
        table = Table(title=sheet.title, title_justify="left", box=box.SIMPLE_HEAD)
        for place, heading in enumerate(sheet.headings):
            table.add_column(heading, justify="left" if place == 0 else "right")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
        console.print(sheet.note, highlight=False, soft_wrap=True)
    typer.echo(exp.run.dir / diagnostics.FILE_NAME)
