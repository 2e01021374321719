"""``refbert cache gc``: what lies in a cache directory, who uses it, and away with what nobody does."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import typer
from rich.console import Console

from launchers.cache import items_of
from launchers.readable import size
from refbert_dist.artifacts.garbage import Holding, debris, remove, survey, sweep
from refbert_dist.cache.models import shared_models
from refbert_dist.errors import RefBertError
from refbert_dist.rundir import stored_experiment


def gc(cache_dir: Path, yes: bool, dry_run: bool) -> None:
    """List what lies in the cache and who uses it; then, if that is wanted, delete what nobody does."""
    console = Console()
    holdings, others = survey(cache_dir)
    named = {run_dir: _named_by(run_dir) for run_dir in {user for holding in holdings for user in holding.users}}
    for holding in holdings:
        used = time.strftime("%Y-%m-%d", time.localtime(holding.last_used))
        extent = f"{size(holding.bytes):>10} {holding.files:>7,} files  last used {used}"
        console.print(f"{holding.name:30} {extent}  {_verdict(holding)}", highlight=False, soft_wrap=True)
        for run_dir, existence in holding.users.items():
            words = {"gone": "run is gone", "unknown": "cannot tell from here", "exists": "run exists"}[existence]
            words = "used by" if existence == "exists" and holding.name in named[run_dir] else words
            console.print(f"    {words}: {run_dir}", highlight=False, soft_wrap=True)
    for path in others:
        console.print(f"{path.relative_to(cache_dir)}: no artefact, kept", highlight=False, soft_wrap=True)
    doomed = [holding for holding in holdings if holding.deletable]
    litter = [path for holding in holdings if not holding.deletable for path in debris(holding)]
    for path in litter:
        console.print(f"{path.relative_to(cache_dir)}: left by a killed writer", highlight=False, soft_wrap=True)
    if not doomed and not litter:
        console.print(f"nothing to delete in {cache_dir}", highlight=False, soft_wrap=True)
        return
    room = size(sum(holding.bytes for holding in doomed))
    what = f"{len(doomed)} artefact(s) of {room} and {len(litter)} file(s) of killed writers"
    if dry_run or not (yes or sys.stdin.isatty()):
        console.print(f"{what} can be deleted; run again with --yes to do so", highlight=False, soft_wrap=True)
    elif yes or typer.confirm(f"delete {what}?"):
        for holding in doomed:
            outcome = "deleted" if remove(holding) else "kept, because a run has come to use it"
            console.print(f"{holding.name} {outcome}", highlight=False, soft_wrap=True)
        for path in litter:
            sweep(path)
            console.print(f"{path.relative_to(cache_dir)} deleted", highlight=False, soft_wrap=True)


def _verdict(holding: Holding) -> str:
    if holding.deletable:
        return "deletion was interrupted" if holding.doomed else "nobody uses it"
    if holding.busy:
        return "somebody is writing, kept"
    return "kept" if holding.users else "not registered, kept"


def _named_by(run_dir: Path) -> set[str]:
    """``KIND/KEY`` of all that the experiment in a run directory names; nothing if there is none that can be read."""
    try:
        exp = stored_experiment(run_dir)
        paths = [item.artifact.path for item in items_of(exp)]
        paths += shared_models(exp)
    except (RefBertError, OSError):
        return set()
    return {f"{path.parent.name}/{path.name}" for path in paths}
