"""Figures of a shape that are known, or measured, before anything is spent on training it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refbert_dist.config import Experiment
from refbert_dist.costs.work import classifier_parameters, forward, student_shape
from refbert_dist.data.tasks import task_spec
from refbert_dist.errors import UserError
from refbert_dist.models.locate import teacher_info
from refbert_dist.tracking.files import read_json_or_none, replace_json
from tune.config import Limits, Search
from tune.space import Point, experiment_at, shared_experiment

Figures = dict[str, float]


def shape_figures(exp: Experiment) -> Figures:
    """``parameters`` and ``gflops`` (10^9 operations of a text of ``task.max_length`` tokens) of the student."""
    assert exp.task is not None
    info, references = teacher_info(exp.teacher.model), exp.references
    shape, length = student_shape(exp.student, info), exp.task.max_length
    work = forward(shape, length, length).flops
    # Keys and values of references are projected beforehand: what is left is to attend to them.
    work += 4 * length * references.count * references.max_length * shape.hidden
    labels = task_spec(exp.task.name).num_labels
    return {"parameters": classifier_parameters(exp, info, labels), "gflops": work / 1e9}


class Gate:
    """Tells which points may be tried: those whose values go together, below all limits.

    Args:
        search: space and limits.
        stopwatch: None does not time shapes, as long as nothing is there to time them with.
    """

    def __init__(self, search: Search, stopwatch: Stopwatch | None = None) -> None:
        self._limits = search.limits
        self._shared = shared_experiment(search)
        self._stopwatch = stopwatch if search.times_shapes else None

    def experiment(self, point: Point) -> Experiment:
        """What is trained at a point. Raises UserError where its values do not go together."""
        return experiment_at(self._shared, point)

    def figures(self, exp: Experiment) -> Figures:
        """Of a shape; it is timed only where nothing else rules it out."""
        figures = shape_figures(exp)
        if self._stopwatch and not excess(figures, self._limits):
            figures["latency_ms"] = self._stopwatch.latency_ms(exp)
        return figures

    def __call__(self, point: Point) -> str | None:
        """Why a point must not be tried; None if it may."""
        try:
            exp = self.experiment(point)
        except UserError as error:
            return str(error)
        return excess(self.figures(exp), self._limits)


def excess(figures: Mapping[str, float], limits: Limits) -> str | None:
    """What of a shape is above its limit, in words; None if nothing is."""
    for name, limit in limits.model_dump().items():
        if limit is not None and name in figures and figures[name] > limit:
            return f"{name} {figures[name]:.4g} is above limits.{name}={limit:g}"
    return None


class Stopwatch:
    """Times shapes with random weights beside the teacher, and remembers: ``RUN_DIR/latency.json``.

    A shape is timed as ``evaluate`` does it. Trials may be running meanwhile; so what counts is how many times faster
    than the teacher a shape is, in passes that take turns, times the teacher's own time, which is taken first, before
    anything runs.
    """

    def __init__(self, shared: Experiment) -> None:
        self._path = shared.run.dir / "latency.json"
        self._known: dict[str, Any] = read_json_or_none(self._path) or {}
        self._shared = shared

    def time_teacher(self) -> None:
        """Take the teacher's time, on a machine that does nothing else, unless it is known."""
        from tune.timing import teacher_ms

        if "teacher_ms" not in self._known:
            self._note("teacher_ms", teacher_ms(self._shared))

    def latency_ms(self, exp: Experiment) -> float:
        """Median of one forward pass of ``evaluate.latency_batch_size`` held-out texts, milliseconds."""
        from tune.timing import ratio_to_teacher

        key = " ".join(f"{name}={value}" for name, value in _timed(exp).items())
        if key not in self._known:
            self._note(key, ratio_to_teacher(exp))
        return float(self._known["teacher_ms"] / self._known[key])

    def _note(self, key: str, value: float) -> None:
        self._known[key] = value
        replace_json(self._path, self._known)


def _timed(exp: Experiment) -> dict[str, Any]:
    """What a forward pass depends on."""
    student = exp.student
    shape = {name: getattr(student, name) for name in ("layers", "hidden", "heads", "intermediate")}
    return shape | {"references": exp.references.count, "length": exp.references.max_length}
