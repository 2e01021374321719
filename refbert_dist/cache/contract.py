"""What a teacher cache is made from: its recipe (names the folder) and its ingredients (checked by every reader)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from refbert_dist.artifacts import Artifact, recipe_key
from refbert_dist.cache.codec import CODEC
from refbert_dist.cache.models import task_teacher
from refbert_dist.cache.plan import PLAN_VERSION
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import Part, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.models.layer_map import layer_map
from refbert_dist.models.locate import teacher_info

Scope = Literal["general", "task"]
"""``general``: the teacher as given, on the corpus. ``task``: the fine-tuned teacher, on the task's training rows."""

PRECISION = "fp32"
"""Number format in which the teacher computes."""


def scope_part(scope: Scope) -> Part:
    """The token set that a scope's states belong to; it is also the pool that references come from."""
    return "corpus" if scope == "general" else "train"


def teacher_spec(exp: Experiment, scope: Scope) -> str:
    """Where the scope's teacher is loaded from."""
    return exp.teacher.model if scope == "general" else str(task_teacher(exp))


def value_layer(exp: Experiment) -> int:
    """Teacher layer that feeds the reference values, counted from 1."""
    layer = exp.references.value_layer
    return teacher_info(exp.teacher.model).layers if layer == -1 else layer


def stored_layers(exp: Experiment) -> tuple[int, ...]:
    """Teacher layers that this experiment stores; layer 0, the embedding output, is always recomputed from the ids.

    The attention losses recompute queries and keys of layer l from its *input*, the output of layer l-1.
    """
    depth = teacher_info(exp.teacher.model).layers
    if exp.cache.layers == "all":
        return tuple(range(1, depth + 1))
    layers = set(read_layers(exp) if exp.cache.layers == "auto" else exp.cache.layers)
    if layers and max(layers) > depth:
        raise UserError(f"cache.layers names layer {max(layers)} but the teacher has {depth}; use layers 1 to {depth}")
    missing = sorted({*read_layers(exp)} - layers - {0})
    if missing:
        raise UserError(
            f"cache.layers is {sorted(layers)} but this experiment reads layer {', '.join(map(str, missing))} as well; "
            "add what is missing or set cache.layers=auto"
        )
    return tuple(sorted(layers - {0}))


def read_layers(exp: Experiment) -> tuple[int, ...]:
    """Teacher layers that the losses and the references of this experiment read, 0 included."""
    weights = exp.distill.weights
    mapped = layer_map(exp.distill.layer_map, exp.student.layers, teacher_info(exp.teacher.model).layers)
    layers: set[int] = set()
    if weights.hidden:
        layers |= set(mapped)
    if weights.attention:
        layers |= {layer - 1 for layer in mapped}
    if exp.references.count:
        layers |= {exp.references.key_layer, value_layer(exp)}
    return tuple(sorted(layers))


def states_artifact(exp: Experiment, scope: Scope) -> Artifact:
    """The cache folder of a scope."""
    source = exp.teacher.model if scope == "general" else task_teacher(exp).name
    recipe = {
        "scope": scope,
        "teacher": source,
        "tokens": tokens_artifact(exp, scope_part(scope)).path.name,
        "layers": stored_layers(exp),
        "precision": PRECISION,
        "shard_tokens": exp.cache.shard_tokens,
        "batch_tokens": exp.cache.batch_tokens,
        "plan": PLAN_VERSION,
        "codec": CODEC,
    }
    return Artifact(exp.cache.dir / "teacher" / recipe_key("teacher-states", recipe))


def check_ingredients(artifact: Artifact, made_from: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a cache, or a shard of one, that was made from something else; names the first ingredient that differs."""
    for name, value in expected.items():
        if made_from.get(name) != value:
            raise UserError(
                f"the teacher cache {artifact.path} was made with another {name} ({made_from.get(name)} then, {value} "
                "now); set another cache.dir, or remove that folder"
            )
