"""Charts of a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from refbert_dist.report.charts import COLOURS, PALE, Axis, Point, Series, bars, chart, parallel, shade
from refbert_dist.report.curves import losses
from refbert_dist.report.page import shown
from refbert_dist.tracking.files import read_json_or_none
from tune.config import Dimension, Range, Search
from tune.front import Objective, objectives_of, pareto_front
from tune.records import Trial, finished, trial_folder
from tune.sampling import importances
from tune.space import values_of

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "hexagon", "cross")
"""One for each count of references, as the colours."""
MOST_TICKS = 9
FEW = 10
"""Points of a line that are marked."""


@dataclass(frozen=True)
class Found:
    """A search and its trials, as the charts and tables want them."""

    run_dir: Path
    search: Search
    trials: Sequence[Trial]

    @cached_property
    def objectives(self) -> list[Objective]:
        """What it is led by."""
        return objectives_of(self.search)

    @cached_property
    def ended(self) -> list[Trial]:
        """The trials that went to their end."""
        return finished(self.trials)

    @cached_property
    def front(self) -> list[Trial]:
        """Those of them than which none is better, the best score first."""
        if not self.ended:
            return []
        places = pareto_front([trial.figures for trial in self.ended], self.objectives)
        best_first = sorted(places, key=lambda place: -self.objectives[0].worth(self.ended[place].figures))
        return [self.ended[place] for place in best_first]

    def count(self, trial: Trial) -> int:
        """References that a trial reads for each input (k)."""
        return int(trial.point.get("references.count", self.search.experiment.references.count))

    def kind(self, trial: Trial) -> str:
        """What its points and lines are called in the legends."""
        return f"k={self.count(trial)}" if trial.state == "finished" else "not at its end"

    def colour(self, trial: Trial) -> str:
        """Of its kind."""
        return COLOURS[self.count(trial) % len(COLOURS)] if trial.state == "finished" else PALE

    def symbol(self, trial: Trial) -> str:
        """Of its kind."""
        return SYMBOLS[self.count(trial) % len(SYMBOLS)] if trial.state == "finished" else "x-thin-open"

    @property
    def front_is(self) -> str:
        """What the front is, in words."""
        return "on the Pareto front" if len(self.objectives) > 1 else "the best"

    def quality(self, trial: Trial) -> float:
        """Of a finished trial by the first objective: 0 the worst, 1 the best."""
        worth = [self.objectives[0].worth(each.figures) for each in self.ended]
        low, high = min(worth), max(worth)
        return (self.objectives[0].worth(trial.figures) - low) / (high - low) if high > low else 1.0

    def hover(self, trial: Trial) -> str:
        """Everything about a trial, a line each."""
        values = trial.point | {name: trial.figures[name] for name in self.shown_figures if name in trial.figures}
        state = "" if trial.state == "finished" else f", {trial.state}"
        return "\n".join(
            [f"trial {trial.number}{state}", *(f"{name}  {shown(value)}" for name, value in values.items())]
        )

    @cached_property
    def shown_figures(self) -> list[str]:
        """Names of the objectives, and of the figures of the shape."""
        names = [objective.name for objective in self.objectives]
        known = {name for trial in self.trials for name in trial.figures}
        return [*names, *(name for name in ("parameters", "gflops", "latency_ms") if name in known - set(names))]


def trade_offs(found: Found) -> list[str]:
    """The first objective against each other one, or, alone, against the parameters; every scored trial is a point."""
    first, *others = (objective.name for objective in found.objectives)
    return [_trade_off(found, first, other) for other in others or ["parameters"] if other != first]


def _trade_off(found: Found, first: str, other: str) -> str:
    front = {trial.number for trial in found.front}
    series = []
    if len(found.objectives) == 2 and len(front) > 1:
        along = sorted((trial.figures[other], trial.figures[first]) for trial in found.front)
        series.append(Series("Pareto front", along, colour=COLOURS[-1], width=1.2, dash="dot"))
    scored = [trial for trial in found.trials if first in trial.figures and other in trial.figures]
    # Those of the front come last, so that nothing covers them.
    for trial in sorted(scored, key=lambda trial: (trial.number in front, found.kind(trial))):
        ringed = trial.number in front
        series.append(
            Series(
                found.kind(trial),
                [(trial.figures[other], trial.figures[first])],
                "markers",
                [found.hover(trial)],
                found.colour(trial),
                found.symbol(trial),
                size=12 if ringed else 9,
                ringed=ringed,
            )
        )
    return chart(f"{first} and {other}; with a ring: {found.front_is}", series, other, first, _teacher(found, first))


def _teacher(found: Found, metric: str) -> dict[str, float]:
    """The teacher's own score on the same rows, from the first trial that has it."""
    for trial in found.trials:
        rows: list[dict[str, Any]] = read_json_or_none(trial_folder(found.run_dir, trial.number) / "results.json") or []
        for row in rows:
            if row["system"] == "teacher" and row["metric"] == metric:
                return {"teacher": row["score"]}
    return {}


def coordinates(found: Found) -> str:
    """Every finished trial as a line over all dimensions and objectives."""
    scales = [_scale(name, dimension) for name, dimension in found.search.space.items()]
    for objective in found.objectives:
        reached = [trial.figures[objective.name] for trial in found.ended]
        scales.append(Scale(objective.name, (min(reached), max(reached)), min(reached), max(reached)))
    front = {trial.number for trial in found.front}
    lines = []
    for trial in sorted(found.ended, key=lambda trial: (trial.number in front, found.quality(trial))):
        values = trial.point | trial.figures
        heights = [(place, scale.height(values[scale.name])) for place, scale in enumerate(scales)]
        text, width = found.hover(trial), 3.0 if trial.number in front else 1.5
        colour = shade(found.quality(trial))
        lines.append(Series(trial.name, heights, "lines+markers", [text] * len(heights), colour, width=width))
    caption = f"Darker: better by {found.objectives[0].name}; thick: {found.front_is}"
    return parallel(caption, [Axis(scale.name, scale.ticks) for scale in scales], lines)


@dataclass(frozen=True)
class Scale:
    """Where the values of a dimension or an objective lie on its axis, from 0 to 1."""

    name: str
    marks: Sequence[Any]
    """Values that are named on the axis."""
    low: float | None = None
    """None: all values are marks, and lie evenly."""
    high: float = 0.0
    log: bool = False

    def height(self, value: Any) -> float:
        """Of one value."""
        if self.low is None:
            at, low, high = float(self.marks.index(value)), 0.0, len(self.marks) - 1.0
        else:
            at, low, high = value, self.low, self.high
        if self.log:
            at, low, high = math.log(at), math.log(low), math.log(high)
        return (at - low) / (high - low) if high > low else 0.5

    @property
    def ticks(self) -> dict[float, str]:
        """Height -> label."""
        return {self.height(value): shown(value) for value in self.marks}


def _scale(name: str, dimension: Dimension) -> Scale:
    if not isinstance(dimension, Range):
        return Scale(name, dimension)
    marks: tuple[Any, ...] = (dimension.low, dimension.high)
    if dimension.step is not None and len(steps := values_of(name, dimension)) <= MOST_TICKS:
        marks = steps
    return Scale(name, marks, dimension.low, dimension.high, dimension.log)


def importance(found: Found) -> list[str]:
    """For each objective, how much of its variance each dimension explains; none where trials are too few."""
    return [
        bars(objective.name, shares, "share of the variance that it explains")
        for objective in found.objectives
        if (shares := importances(found.search, objective, found.trials))
    ]


def rungs(found: Found) -> str:
    """The first objective of every trial, rung by rung."""
    name = found.objectives[0].name
    curves = [
        (trial, [(rung.share, rung.figures[name]) for rung in trial.rungs if name in rung.figures])
        for trial in found.trials
    ]
    return _overlay(found, f"{name} after a share of the general stage", "share", name, curves)


def general_losses(found: Found) -> str:
    """The loss of every trial's general stage."""
    curves = [(trial, losses(trial_folder(found.run_dir, trial.number), "distill-general")) for trial in found.trials]
    return _overlay(found, "loss of the general stage", "step", "loss", curves)


def _overlay(found: Found, caption: str, x: str, y: str, curves: Iterable[tuple[Trial, Sequence[Point]]]) -> str:
    """A line for each trial; those that are not at their end lie below."""
    series = [
        Series(
            found.kind(trial),
            points,
            "lines+markers" if len(points) < FEW else "lines",
            found.hover(trial),
            found.colour(trial),
            width=1.2,
        )
        for trial, points in sorted(curves, key=lambda curve: (curve[0].state == "finished", found.kind(curve[0])))
        if points
    ]
    return chart(caption, series, x, y) if series else ""
