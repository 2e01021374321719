"""Commands about the directory of a run, a search or a table: how far it is, and what came of it."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from launchers.execute import execute, show_run
from launchers.options import DryRun, RunDir, Wait, Where

runs_app = typer.Typer()


@runs_app.command()
def status(
    run_dir: RunDir,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How far a run is: stages, jobs, nodes, progress, why something waits or has failed; of a table its cells."""
    from rich.console import Console

    from launchers.watch.status import show_status
    from launchers.watch.table_status import show_table_status
    from refbert_dist.rundir import is_table

    (show_table_status if is_table(run_dir) else show_status)(run_dir, as_json, Console())


@runs_app.command()
def logs(
    run_dir: RunDir,
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Of this stage instead of the newest.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run has ended.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Of what has failed, with the reason.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="Lines from the end.")] = 40,
) -> None:
    """What a run prints."""
    from launchers.watch.logs import show_logs

    show_logs(run_dir, stage, follow, failed, lines)


@runs_app.command()
def cancel(run_dir: RunDir) -> None:
    """End the jobs of a run, or of all cells of a table; what they have finished stays."""
    from rich.console import Console

    from launchers.watch.status import cancel_run
    from launchers.watch.table_status import begun_cells
    from refbert_dist.rundir import is_table

    for folder in begun_cells(run_dir) if is_table(run_dir) else [run_dir]:
        cancel_run(folder, Console())


@runs_app.command()
def resume(run_dir: RunDir, dry_run: DryRun = False, wait: Wait = False) -> None:
    """Go on with a run as it was started last: where it was submitted to, or here."""
    from launchers.cluster.launch import last_start
    from refbert_dist.rundir import started_in

    exp, targets, on = last_start(run_dir)
    with contextlib.chdir(started_in(run_dir)):
        if execute(exp, targets, Where(on, dry_run, wait)):
            show_run(exp)


@runs_app.command()
def sync(run_dir: RunDir, dry_run: DryRun = False) -> None:
    """Copy to MLflow what a run has recorded and MLflow lacks, as after a time without a network."""
    from launchers.watch.run_status import experiment_of
    from refbert_dist.pipeline import mlflow_copy

    copy = mlflow_copy(experiment_of(run_dir))
    if dry_run:
        typer.echo(f"would copy {run_dir} to {copy.uri}")
        return
    typer.echo(f"{copy.sync_once()} records copied to {copy.uri}")


@runs_app.command()
def report(run_dir: RunDir, dry_run: DryRun = False) -> None:
    """One page with tables and plots about a run, a search or a table, finished or not: RUN_DIR/report.html."""
    from launchers.watch.run_status import experiment_of
    from refbert_dist.report.page import FILE_NAME
    from refbert_dist.report.run import write_report
    from refbert_dist.rundir import is_search, is_table

    exp = None if is_table(run_dir) else experiment_of(run_dir)
    if dry_run:
        typer.echo(f"would write {run_dir / FILE_NAME}")
    elif exp is None:
        from launchers.table import report_table

        typer.echo(report_table(run_dir))
    elif is_search(run_dir):
        # What searches need need not be installed where there are none.
        from tune.report import write_search_report

        typer.echo(write_search_report(run_dir))
    else:
        typer.echo(write_report(exp))


@runs_app.command()
def diagnose(run_dir: RunDir, dry_run: DryRun = False) -> None:
    """What a finished run's students make of their references: information, attention, where they gain, and why."""
    from launchers.diagnose import diagnose

    diagnose(run_dir, dry_run)
