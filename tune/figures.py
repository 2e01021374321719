"""Figures of a shape that are known, or measured, before anything is spent on training it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from refbert_dist.config import Experiment
from refbert_dist.costs.work import classifier_parameters, forward, student_shape
from refbert_dist.data.tasks import task_spec
from refbert_dist.errors import UserError
from refbert_dist.models.locate import teacher_info
from tune.config import RATIO, Limits, Search
from tune.space import Point, experiment_at, shared_experiment, values_of

Figures = dict[str, float]
TIMED = {
    *("student.layers", "student.hidden", "student.heads", "student.intermediate", RATIO),
    *("references.count", "references.max_length", "references.memory"),
}
"""What the time of a forward pass depends on."""


def shape_figures(exp: Experiment) -> Figures:
    """``parameters`` and ``gflops`` (10^9 operations of a text of ``task.max_length`` tokens) of the student."""
    assert exp.task is not None
    info, references = teacher_info(exp.teacher.model), exp.references
    shape, length = student_shape(exp.student, info), exp.task.max_length
    work = forward(shape, length, length).flops
    # Keys and values of references are projected beforehand: what is left is to attend to them.
    work += 4 * length * (references.count * references.max_length + references.memory) * shape.hidden
    labels = task_spec(exp.task.name).num_labels
    return {"parameters": classifier_parameters(exp, info, labels), "gflops": work / 1e9}


class Gate:
    """Tells which points may be tried: those whose values go together, below all limits.

    Args:
        search: space and limits.
        latencies_ms: of shapes, by name; None as long as nothing has been timed.
    """

    def __init__(self, search: Search, latencies_ms: Mapping[str, float] | None = None) -> None:
        self._limits = search.limits
        self._shared = shared_experiment(search)
        self._latencies_ms = latencies_ms

    def experiment(self, point: Point) -> Experiment:
        """What is trained at a point. Raises UserError where its values do not go together."""
        return experiment_at(self._shared, point)

    def figures(self, exp: Experiment) -> Figures:
        """Of a shape."""
        figures = shape_figures(exp)
        # A shape that something else rules out was not timed.
        if self._latencies_ms and shape_name(exp) in self._latencies_ms:
            figures["latency_ms"] = self._latencies_ms[shape_name(exp)]
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


def timed_shapes(search: Search) -> dict[str, Experiment]:
    """An experiment of each shape whose forward pass is to be timed: those below the other limits.

    Raises :class:`UserError` where there are endless many.
    """
    chosen = {
        name: values_of(name, dimension, "so that not all shapes can be timed beforehand")
        for name, dimension in search.space.items()
        if name in TIMED
    }
    gate, found = Gate(search), {}
    for values in itertools.product(*chosen.values()):
        # Which layers it learns from makes no difference to a pass, but may fit only some depths.
        point = {**dict(zip(chosen, values, strict=True)), "distill.layer_map": "uniform"}
        if gate(point) is None:
            exp = gate.experiment(point)
            found[shape_name(exp)] = exp
    return found


def shape_name(exp: Experiment) -> str:
    """All that the time of a forward pass depends on."""
    student, references = exp.student, exp.references
    reads = f", reads {references.count} x {references.max_length}" if references.count else ""
    reads += f", memory {references.memory}" if references.memory else ""
    return f"{student.layers} x {student.hidden} / {student.heads}, {student.intermediate}{reads}"
