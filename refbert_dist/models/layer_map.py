"""Which teacher layer each student layer learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from refbert_dist.errors import UserError


def layer_map(
    policy: Literal["uniform", "last"] | Sequence[int], student_layers: int, teacher_layers: int
) -> tuple[int, ...]:
    """Teacher layer (1 to N) for each of the M student layers.

    ``uniform`` spreads them evenly, ``round(m N / M)``, so that the last maps to the last (TinyBERT's choice, arXiv
    1909.10351, for any pair of depths; a deeper student repeats layers). ``last`` takes the last M. A sequence is
    used as it is. Raises UserError naming ``distill.layer_map``.
    """
    if policy == "uniform":
        # A student deeper than twice the teacher would round to 0, the embeddings, which have no attention.
        return tuple(max(1, round(m * teacher_layers / student_layers)) for m in range(1, student_layers + 1))
    if policy == "last":
        if student_layers > teacher_layers:
            raise UserError(
                f"distill.layer_map is 'last' but student.layers is {student_layers} and the teacher has only "
                f"{teacher_layers} layers; set distill.layer_map=uniform or fewer student.layers"
            )
        return tuple(range(teacher_layers - student_layers + 1, teacher_layers + 1))
    explicit = tuple(int(layer) for layer in policy)
    if len(explicit) != student_layers:
        raise UserError(
            f"distill.layer_map names {len(explicit)} teacher layers but student.layers is {student_layers}; "
            "give one teacher layer for each student layer"
        )
    outside = [layer for layer in explicit if not 1 <= layer <= teacher_layers]
    if outside:
        raise UserError(
            f"distill.layer_map names layer {outside[0]} but the teacher has layers 1 to {teacher_layers}; "
            "correct the list"
        )
    return explicit
