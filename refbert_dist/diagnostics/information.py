"""I(T;S) and I(T;S,R): what a student's states, alone and beside those of a reference, tell of the teacher's.

T are the teacher's pooled last states of an input, S the student's, R the teacher's of the input's references. That
I(T;S,R) is not less than I(T;S) holds for any R: so it stands beside what controls in the place of R give.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refbert_dist.diagnostics.estimators import (
    COMPONENTS,
    Principal,
    bound_limit,
    info_nce,
    nearest_neighbours,
)
from refbert_dist.diagnostics.states import Pooled

SYSTEMS = ("refbert", "tinybert")
"""Whose states are looked at: with references among what they are made from, and without."""
SEEDS = (0, 1, 2)
"""Of the critics; the same for all that is compared."""
FEW_COMPONENTS = 2
"""Principal components of each vector that the nearest-neighbour estimator sees."""
SECOND = ("nothing", "references", "another input's references", "random rows", "zeros", "the input's own states")
"""What stands beside S: R, and its controls."""


def information(train: Pooled, held_out: Pooled, system: str) -> list[dict[str, Any]]:
    """One row for each of ``SECOND``: estimates in nats on held-out rows, of a system's student."""
    inputs = [(pooled.teacher, pooled.students[system], _seconds(pooled)) for pooled in (train, held_out)]
    limit = bound_limit(len(held_out.teacher))
    rows = []
    for name in SECOND:
        pairs = _components(inputs, name, COMPONENTS)
        found = [info_nce(pairs[0], pairs[1], seed) for seed in SEEDS]
        near = nearest_neighbours(*_components(inputs, name, FEW_COMPONENTS)[1])
        rows.append(
            {
                "system": system,
                "beside": name,
                "info_nce": float(np.mean(found)),
                "info_nce_lowest": min(found),
                "info_nce_highest": max(found),
                "limit": limit,
                "nearest_neighbours": near,
            }
        )
    return rows


def _seconds(pooled: Pooled) -> dict[str, np.ndarray]:
    order = np.random.default_rng(0).permutation(len(pooled.references))
    # In a circle, so that no row keeps its own.
    shuffled = np.empty_like(pooled.references)
    shuffled[order] = pooled.references[np.roll(order, 1)]
    others = (pooled.references, shuffled, pooled.random, np.zeros_like(pooled.references), pooled.teacher)
    return dict(zip(SECOND[1:], others, strict=True))


def _components(
    inputs: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]], name: str, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """T, and S with what stands beside it, of both parts; components as found on the first."""
    teacher, student, seconds = inputs[0]
    of_teacher, of_student = Principal.of(teacher, count), Principal.of(student, count)
    of_second = Principal.of(seconds[name], count) if name in seconds else None
    return [
        (of_teacher(t), np.concatenate([of_student(s), *([of_second(r[name])] if of_second else [])], axis=1))
        for t, s, r in inputs
    ]
