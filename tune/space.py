"""Points of a search space, and the experiment at each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refbert_dist.cache.contract import is_cached, read_layers
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.config.load import apply_overrides, check_value
from refbert_dist.errors import UserError
from tune.config import RATIO, Dimension, Range, Search

Point = dict[str, Any]
"""Field -> value."""

VARIABLE = ("student.", "references.", "distill.")
FIXED = ("references.stored_count", "references.states", "distill.targets")
STORED = (
    *("student.layers", "distill.layer_map", "distill.weights."),
    *("references.count", "references.key_layer", "references.value_layer"),
)
"""What decides how many neighbours and which of the teacher's layers are stored."""


def experiment_at(base: Experiment, point: Mapping[str, Any]) -> Experiment:
    """The experiment with a point's values. Raises UserError where they do not go together."""
    values = dict(point)
    ratio = values.pop(RATIO, None)
    data = apply_overrides(
        base.model_dump(mode="json"), [f"{name}={json.dumps(value)}" for name, value in values.items()]
    )
    if ratio is not None:
        data["student"]["intermediate"] = round(ratio * data["student"]["hidden"])
    return parse_experiment(data)


def trial_experiment(search: Search, point: Mapping[str, Any], folder: Path, share: float) -> Experiment:
    """The ordinary run that a trial is, up to a share of the general stage.

    It has the search's cache, records nothing in MLflow itself (the search copies all its trials), and times nothing,
    because others run beside it.
    """
    placed = [f"run.dir={json.dumps(str(folder))}", "tracking.mlflow=false", "evaluate.latency_repeats=0"]
    placed += [f"launch.processes={search.trial.processes}", f"launch.threads={search.trial.threads}"]
    placed.append(f"distill.general.until={share}")
    exp = experiment_at(shared_experiment(search), point)
    return parse_experiment(apply_overrides(exp.model_dump(mode="json"), placed))


def shared_experiment(search: Search) -> Experiment:
    """What is made once for all trials: as many neighbours and as many of the teacher's layers as any of them reads."""
    base = search.experiment
    points = [exp for point in _corners(search) if (exp := _valid(base, point))]
    layers = {layer for exp in points if is_cached(exp) for layer in read_layers(exp)} - {0}
    # The experiment itself need not be in the space, and then nothing that only it would read is stored.
    example = base if not is_cached(base) or {*read_layers(base)} - {0} <= layers else next(iter(points), base)
    data = example.model_dump(mode="json")
    count = max(base.references.kept, *_tried(search.space.get("references.count", (0,))))
    if base.references.stored_count and count > base.references.stored_count:
        raise UserError(
            f"space.references.count goes up to {count}, but experiment.references.stored_count is "
            f"{base.references.stored_count}; store at least {count}, or search fewer"
        )
    data["references"]["stored_count"] = count or None
    if base.cache.layers == "auto":
        data["cache"]["layers"] = sorted(layers) or "auto"
    return parse_experiment(data)


def _corners(search: Search) -> Iterator[Point]:
    """All combinations of what decides how much has to be stored, everything else as in the base experiment."""
    chosen = {name: _tried(dimension) for name, dimension in search.space.items() if name.startswith(STORED)}
    for values in itertools.product(*chosen.values()):
        yield dict(zip(chosen, values, strict=True))


def _tried(dimension: Dimension) -> tuple[Any, ...]:
    """All values of a dimension; of one that has endless many, its ends."""
    if isinstance(dimension, Range) and dimension.step is None:
        return (as_number(dimension.low), as_number(dimension.high))
    return values_of("", dimension)


def _valid(base: Experiment, point: Point) -> Experiment | None:
    try:
        return experiment_at(base, point)
    except UserError:
        return None


def check_space(search: Search) -> None:
    """Raise :class:`UserError` for a dimension that is no field, cannot vary, or has a value that the field refuses."""
    if RATIO in search.space and "student.intermediate" in search.space:
        raise UserError(f"space names both {RATIO} and student.intermediate; keep one of them")
    for name, dimension in search.space.items():
        if name != RATIO and (not name.startswith(VARIABLE) or name in FIXED or name.endswith(".until")):
            raise UserError(
                f"space names {name}, which all trials share (one teacher, one cache, one budget); vary fields of "
                "student, references (not stored_count, states) or distill (not targets), and set this in experiment"
            )
        for value in () if name == RATIO else _tried(dimension):
            try:
                check_value(name, value)
            except UserError as error:
                raise UserError(f"space: {error}") from None


def grid(search: Search) -> Iterator[Point]:
    """Every point of a space, the last dimension changing fastest.

    Raises :class:`UserError` where a dimension has any number between two.
    """
    names = list(search.space)
    for chosen in itertools.product(*(values_of(name, search.space[name]) for name in names)):
        yield dict(zip(names, chosen, strict=True))


def grid_size(search: Search) -> int | None:
    """Points of the space; None where they are endless."""
    size = 1
    for name, dimension in search.space.items():
        if isinstance(dimension, Range) and dimension.step is None:
            return None
        size *= len(values_of(name, dimension))
    return size


def values_of(name: str, dimension: Dimension, consequence: str = "which a grid cannot go through") -> tuple[Any, ...]:
    """All values of a dimension; UserError, with what follows from it, for one that has endless many."""
    if not isinstance(dimension, Range):
        return dimension
    if dimension.step is None:
        raise UserError(
            f"space.{name} is any number from {dimension.low:g} to {dimension.high:g}, {consequence}; give it a step"
        )
    count = int((dimension.high - dimension.low) / dimension.step + 1e-9) + 1
    return tuple(as_number(dimension.low + index * dimension.step) for index in range(count))


def as_number(value: float) -> float | int:
    """A whole number as one."""
    return int(value) if float(value).is_integer() else value
