"""The report of a search: how far it is, what nothing else beats, and what made the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refbert_dist.artifacts import write_text
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.config.schema import RunConfig
from refbert_dist.report import run
from refbert_dist.report.curves import job_charts
from refbert_dist.report.page import (
    FILE_NAME,
    Section,
    charts,
    facts,
    folded,
    note,
    page,
    paragraph,
    shown,
    table,
    verbatim,
)
from refbert_dist.rundir import stage_record
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.progress import format_duration
from tune.config import Dimension, Range, stored_search
from tune.front import knee
from tune.plots import Found, coordinates, general_losses, importance, rungs, trade_offs
from tune.records import State, Trial, read_trials
from tune.space import grid_size, shared_experiment

STATES: dict[State, str] = {
    "finished": "finished",
    "stopped": "ended early",
    "failed": "failed",
    "running": "running",
    "waiting": "waiting",
}
NONE_YET = "None yet: no trial has come to its end."


def write_search_report(run_dir: Path) -> Path:
    """Write ``RUN_DIR/report.html`` from the files of a search, finished or not; returns its path."""
    run_dir = run_dir.resolve()
    found = Found(run_dir, stored_search(run_dir), read_trials(run_dir))
    exp = shared_experiment(found.search).model_copy(update={"run": RunConfig(dir=run_dir)})
    sections = [
        Section("What is searched", _searched(found, exp)),
        Section("How far it is", _states(found) + run.under_way(run_dir)),
        Section("Pareto front" if len(found.objectives) > 1 else "Best", _front(found)),
        Section("Parallel coordinates", coordinates(found) if found.ended else paragraph(NONE_YET)),
        Section("Importance of each dimension", _importance(found)),
        Section("Learning curves", _curves(found)),
        Section("All trials", _trials(found)),
        Section("The teacher's work", _teacher(found)),
        *([Section("References", run.references(exp))] if exp.references.kept else []),
        Section("Stages", run.stages(exp)),
        Section("Cache", run.cached(exp)),
        Section("Provenance", run.provenance(run_dir)),
        Section("Settings", folded("The search", verbatim(to_yaml(found.search)))),
    ]
    names = ", ".join(objective.name for objective in found.objectives)
    subtitle = f"{names} of students of {exp.teacher.model} over {len(found.search.space)} dimensions"
    path = run_dir / FILE_NAME
    write_text(path, page(f"Search {run_dir.name}", subtitle, sections))
    return path


def _searched(found: Found, exp: Experiment) -> str:
    search, size = found.search, grid_size(found.search)
    limits = [f"{name} up to {shown(limit)}" for name, limit in search.limits.model_dump().items() if limit is not None]
    rungs_at = ", ".join(map(_percent, search.shares))
    points = f"{size:,} points" if size else "endless points"
    what = {
        "objectives": ", ".join(
            f"{each.name} ({'larger' if each.larger_is_better else 'smaller'} is better)" for each in found.objectives
        ),
        "limits": ", ".join(limits) or "none",
        "algorithm": f"{search.look.algorithm}, seed {search.look.seed}, up to {search.look.trials:,} of {points}",
        "scored": f"after {rungs_at} of the general stage; about one trial in {search.halving.reduction:g} goes on"
        if search.halving.rungs
        else "at the end of every trial",
    }
    rows = [[name, _values(dimension)] for name, dimension in search.space.items()]
    # What is searched is no fact of the experiment that all start from.
    base = {name: value for name, value in run.description(exp).items() if name not in ("student", "references")}
    return facts(what | base) + table(["dimension", "values"], rows)


def _values(dimension: Dimension) -> str:
    if not isinstance(dimension, Range):
        return ", ".join(map(shown, dimension))
    kind = f", step {shown(dimension.step)}" if dimension.step else ""
    kind += ", evenly over orders of magnitude" if dimension.log else ""
    return f"{shown(dimension.low)} to {shown(dimension.high)}{kind}"


def _states(found: Found) -> str:
    counts = {words: sum(trial.state == state for trial in found.trials) for state, words in STATES.items()}
    headings = ["trials at most", "chosen", *counts]
    return table(headings, [[found.search.look.trials, len(found.trials), *counts.values()]])


def _front(found: Found) -> str:
    if not found.front:
        return paragraph(NONE_YET)
    rows = [[trial.number, *_values_of(found, trial)] for trial in found.front]
    text, marked = "Scores are those on held-out rows of the training data, which nothing was trained on.", []
    if len(found.objectives) > 1:
        marked = [knee([trial.figures for trial in found.front], found.objectives)]
        trial = found.front[marked[0]]
        text = f"What beats one of them in one figure loses in another. Marked: the knee, trial {trial.number}. {text}"
    headings = ["trial", *found.search.space, *found.shown_figures]
    return table(headings, rows, marked) + note(text) + charts(trade_offs(found))


def _values_of(found: Found, trial: Trial) -> list[Any]:
    """Of each dimension, and of each figure that is shown."""
    point = [trial.point[name] for name in found.search.space]
    return [*point, *(trial.figures.get(name) for name in found.shown_figures)]


def _importance(found: Found) -> str:
    drawn = importance(found)
    if not drawn:
        return paragraph("Unknown: too few trials have come to their end, or all came to the same.")
    return charts(drawn) + note("By fANOVA (Hutter et al. 2014) over the trials that went to their end.")


def _curves(found: Found) -> str:
    drawn = [rungs(found)] if found.search.halving.rungs else []
    drawn = [each for each in (*drawn, general_losses(found), *job_charts(found.run_dir)) if each]
    return charts(drawn) if drawn else paragraph("None yet: no trial has been trained so far.")


def _trials(found: Found) -> str:
    if not found.trials:
        return paragraph("None has been chosen yet.")
    headings = ["trial", "state", *found.search.space, *found.shown_figures, "scored after", "training, h:min:s"]
    rows = [[trial.number, STATES[trial.state], *_values_of(found, trial), *_spent(trial)] for trial in found.trials]
    marked = [place for place, trial in enumerate(found.trials) if trial in found.front]
    errors = [[trial.number, trial.error] for trial in found.trials if trial.error]
    return "".join(
        [
            table(headings, rows, marked),
            note(f"Marked: {found.front_is}.") if marked else "",
            table(["trial", "why it failed"], errors) if errors else "",
        ]
    )


def _spent(trial: Trial) -> list[str | None]:
    """The share of the general stage after which it was scored, and the time of its training."""
    if not trial.rungs:
        return [None, None]
    seconds = trial.figures.get("seconds")
    return [_percent(trial.rungs[-1].share), None if seconds is None else format_duration(seconds)]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _teacher(found: Found) -> str:
    """How often the teacher ran: once for the cache, and again for what trials had to know beyond that."""
    records = {name: read_json_or_none(stage_record(found.run_dir, name)) for name in ("cache-general", "cache-task")}
    rows = [[name, record["result"]["samples"] if record else 0] for name, record in records.items()]
    rows.append(["all trials together", sum(int(trial.figures.get("teacher_samples", 0)) for trial in found.trials)])
    return table(["who", "samples that the teacher was run on"], rows) + note(
        "In this search; what other runs had stored before did not have to be made again."
    )
