"""Run the stages that a command asks for, wherever, and show what came of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from launchers.options import Where

if TYPE_CHECKING:
    from refbert_dist.config import Experiment


def execute(exp: Experiment, targets: tuple[str, ...], where: Where) -> bool:
    """Run what ``targets`` need; False when that was only planned, or has only been submitted."""
    from rich.console import Console

    from launchers.profile import LocalProfile, load_profile

    profile = load_profile(where.on)
    console = Console()
    if where.dry_run:
        from launchers.plan import show_plan

        show_plan(exp, targets, profile, console)
        return False
    if not isinstance(profile, LocalProfile):
        from launchers.cluster.launch import launch, wait

        launch(exp, targets, profile, console)
        if where.wait:
            wait(exp, targets)
        return where.wait
    from launchers.cluster.chain import check_not_live
    from launchers.local import local_launcher
    from refbert_dist import pipeline

    check_not_live(exp.run.dir)
    errors = Console(stderr=True)
    ran = pipeline.run(
        exp,
        targets,
        local_launcher(profile),
        lambda stage, number, count: errors.print(f"[{number}/{count}] {stage.name}: {stage.title}", markup=False),
    )
    if not ran:
        console.print(f"nothing to do: everything that {', '.join(targets)} needs is in {exp.run.dir}")
    return True


def show_scores(exp: Experiment) -> None:
    """The table of teacher and students."""
    from rich.console import Console

    from launchers.tables import show_results

    show_results(exp, Console(width=None if sys.stdout.isatty() else 160))


def show_submission(exp: Experiment) -> None:
    """What there is to send to GLUE's test server, and what a whole submission lacks."""
    from rich.console import Console

    from launchers.tables import show_submitted
    from refbert_dist.artifacts import read_json
    from refbert_dist.rundir import stage_record

    show_submitted(exp.run.dir, read_json(stage_record(exp.run.dir, "submission"))["result"], Console())


def show_informativeness(exp: Experiment) -> None:
    """How much the references tell."""
    from rich.console import Console

    from launchers.tables import show_neighbours
    from refbert_dist.references.neighbours import looked_up_parts, neighbours_artifact

    show_neighbours([neighbours_artifact(exp, part).manifest() for part in looked_up_parts(exp)], Console())


def show_run(exp: Experiment) -> None:
    """What a run, or a search, has come to, and where it lies."""
    from rich.console import Console

    from launchers.tables import show_paths
    from refbert_dist.rundir import is_search

    if is_search(exp.run.dir):
        from launchers.search import show_front
        from tune.config import stored_search

        show_front(stored_search(exp.run.dir), Console())
        return
    if exp.task:
        show_scores(exp)
    show_paths(exp, Console(width=None if sys.stdout.isatty() else 160))
