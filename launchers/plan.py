"""``--dry-run``: the resolved configuration, what would run, and its sizes as far as they are known beforehand."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from launchers.profile import Profile
from refbert_dist.cache.contract import Scope, scope_part, states_artifact, stored_layers
from refbert_dist.config import Experiment, OptimConfig, to_yaml
from refbert_dist.data.tokens import Part, parts, tokens_artifact
from refbert_dist.models.locate import teacher_info
from refbert_dist.pipeline import STAGES, Stage, check, missing_stages
from refbert_dist.rundir import check_same_experiment


def show_plan(exp: Experiment, targets: Iterable[str], profile: Profile, console: Console) -> None:
    """Print everything and start nothing."""
    check(exp)
    check_same_experiment(exp)
    console.print(to_yaml(exp), highlight=False, markup=False, soft_wrap=True)
    to_run = {stage.name for stage in missing_stages(exp, targets)}
    title = f"run.dir {exp.run.dir}   cache.dir {exp.cache.dir}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("stage", "what", "processes", "state", "size"):
        table.add_column(column, overflow="fold")
    for stage in STAGES:
        if stage.wanted(exp):
            processes = (profile.processes or exp.launch.processes) if stage.workers != "one" else 1
            state = "to run" if stage.name in to_run else ("done" if stage.done(exp) else "not needed")
            table.add_row(stage.name, stage.title, str(processes), state, _size(exp, stage))
    console.print(table)


def _size(exp: Experiment, stage: Stage) -> str:
    if stage.name == "prepare":
        known = {part: _samples_and_tokens(exp, part) for part in parts(exp)}
        return "; ".join(f"{part}: {found[0]:,} samples, {found[1]:,} tokens" for part, found in known.items() if found)
    if stage.name == "cache-general":
        return _cache_size(exp, "general")
    if stage.name == "cache-task":
        return _cache_size(exp, "task")
    if stage.name == "finetune":
        return _budget(exp, "train", exp.finetune, 1)
    if stage.name == "distill-general":
        return _budget(exp, "corpus", exp.distill.general, len(exp.trained_systems()))
    if stage.name == "distill-task":
        both = (exp.distill.intermediate, exp.distill.prediction)
        return " + ".join(_budget(exp, "train", optim, len(exp.trained_systems())) for optim in both)
    return ""


def _samples_and_tokens(exp: Experiment, part: Part) -> tuple[int, int] | None:
    artifact = tokens_artifact(exp, part)
    if not artifact.complete:
        return None
    manifest = artifact.manifest()
    return manifest["samples"], manifest["tokens"]


def _cache_size(exp: Experiment, scope: Scope) -> str:
    artifact = states_artifact(exp, scope)
    if artifact.complete:
        return f"{artifact.manifest()['bytes'] / 1e6:,.1f} MB on disk"
    layers = stored_layers(exp)
    per_token = len(layers) * teacher_info(exp.teacher.model).hidden * 2
    known = _samples_and_tokens(exp, scope_part(scope))
    size = f"{per_token * known[1] / 1e6:,.1f} MB, " if known else ""
    return f"{size}{per_token:,} bytes a token (layers {', '.join(map(str, layers))})"


def _budget(exp: Experiment, part: Part, optim: OptimConfig, systems: int) -> str:
    students = f"{systems} x " if systems > 1 else ""
    known = _samples_and_tokens(exp, part)
    length = (
        f"{optim.total_steps(known[0] if known else 1):,} steps" if known or optim.steps else f"{optim.epochs:g} epochs"
    )
    return f"{students}{length} of {optim.batch_size}"
