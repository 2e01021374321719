"""Where systems are right: by what their nearest reference is, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refbert_dist.config import SYSTEMS
from refbert_dist.data.tasks import TaskSpec

SAME, ANOTHER, NONE = "the input's label", "another label", "no reference"
"""Kinds of rows by the label of their nearest reference."""
CLOSE = 0.1
"""Scores that differ by no more than this share of the whole range count as the same label."""
QUANTILES = 4
"""Classes of rows by similarity, with about as many rows each."""
BASELINE = "tinybert"


def kinds(neighbours: np.ndarray, labels: np.ndarray, pool_labels: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """The kind of each row, strings ``[N]``; ``neighbours`` int64 ``[N]`` are its nearest references, -1 for none."""
    others = pool_labels[np.maximum(neighbours, 0)]
    allowed = CLOSE * (spec.label_range[1] - spec.label_range[0]) if spec.is_regression else 0
    same = np.abs(others - labels) <= allowed
    found: np.ndarray = np.where(neighbours < 0, NONE, np.where(same, SAME, ANOTHER))
    return found


def row_scores(logits: np.ndarray, labels: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Whether each answer is right, or how far a score is off, float64 ``[N]``; ``logits [N, C]``."""
    found: np.ndarray = np.abs(logits[:, 0] - labels) if spec.is_regression else logits.argmax(axis=1) == labels
    return found.astype(np.float64)


def measure_of(spec: TaskSpec) -> str:
    """What :func:`row_scores` adds up to."""
    return "absolute error" if spec.is_regression else "accuracy"


def mean_and_error(values: np.ndarray) -> dict[str, float | None]:
    """Mean and its standard error; None of no rows, and no error of one."""
    if not len(values):
        return {"mean": None, "standard_error": None}
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error}


def cell(scores: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    """Every system on some rows (a mask ``[N]``), and its difference to TinyBERT, row by row."""
    found = {name: mean_and_error(values[rows]) for name, values in scores.items()}
    beside: dict[str, Any] = {}
    if BASELINE in scores:
        others = {name: values for name, values in scores.items() if name in SYSTEMS and name != BASELINE}
        beside = {name: mean_and_error((values - scores[BASELINE])[rows]) for name, values in others.items()}
    return {"rows": int(rows.sum()), "systems": found, "beside_tinybert": beside}


def by_label(scores: Mapping[str, np.ndarray], kind: np.ndarray) -> list[dict[str, Any]]:
    """Rows by the kind of their nearest reference, and all rows."""
    every = np.ones(len(kind), bool)
    named = [(name, kind == name) for name in (SAME, ANOTHER, NONE)]
    return [{"neighbour": name, **cell(scores, rows)} for name, rows in (*named, ("any", every)) if rows.any()]


def by_similarity(scores: Mapping[str, np.ndarray], similarity: np.ndarray, kind: np.ndarray) -> list[dict[str, Any]]:
    """Rows that have a reference, from the least similar quarter to the most similar one."""
    some = np.flatnonzero(kind != NONE)
    ordered = some[np.argsort(similarity[some], kind="stable")]
    found = []
    for places in np.array_split(ordered, QUANTILES):
        if not len(places):
            continue
        rows = np.zeros(len(kind), bool)
        rows[places] = True
        span = {"from": float(similarity[places[0]]), "to": float(similarity[places[-1]])}
        found.append(span | {"same_label": float((kind[places] == SAME).mean()), **cell(scores, rows)})
    return found


def attention_table(mass: np.ndarray, uniform: np.ndarray, kind: np.ndarray) -> list[dict[str, Any]]:
    """Attention on references by the kind of the nearest one.

    Args:
        mass: share of each head's attention that falls on references, ``[N, h]``.
        uniform: share of the references among all that can be attended to, ``[N]``.
        kind: see :func:`kinds`.
    """
    names: Sequence[str] = (SAME, ANOTHER)
    return [
        {
            "neighbour": name,
            "rows": int((kind == name).sum()),
            **mean_and_error(mass[kind == name].mean(axis=1)),
            "heads": mass[kind == name].mean(axis=0).tolist(),
            "if_even": float(uniform[kind == name].mean()),
        }
        for name in names
        if (kind == name).any()
    ]
