"""What a teacher cache is made from: its recipe (names the folder) and its ingredients (checked by every reader)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from refbert_dist.artifacts import Artifact, recipe_key
from refbert_dist.cache.codec import codec_version
from refbert_dist.cache.models import task_teacher
from refbert_dist.cache.plan import PLAN_VERSION, CachePlan
from refbert_dist.config import Experiment, Stage
from refbert_dist.data.pool import pool_rows
from refbert_dist.data.tokens import Part, TokenSet, tokens_artifact
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.models.layer_map import layer_map
from refbert_dist.models.locate import model_folder, teacher_info, weights_fingerprint

Scope = Literal["general", "task", "augmented", "fold-0", "fold-1"]
"""``general``: the teacher as given, on the corpus. ``task``: the fine-tuned teacher, on the task's training rows;
``augmented``: on these and their copies. ``fold-N``: on the training rows, the teacher that was not fine-tuned on those
of a fold."""

Purpose = Literal["targets", "references"]
"""What states are read for."""

RECIPE = "recipe"
"""Name of the shard without files that tells what the others are made from."""


def scopes(exp: Experiment) -> tuple[Scope, ...]:
    """The scopes that an experiment has."""
    found: tuple[Scope, ...] = ("general",) if exp.corpus else ()
    if caches_references(exp):
        found += tuple(fold_scope(fold) for fold in exp.folds())
    if exp.task and exp.task.augment:
        # The rows' own states are then read as references alone.
        found += ("task",) if caches_references(exp) else ()
        return (*found, "augmented") if caches_targets(exp) else found
    return (*found, "task") if exp.task else found


def scope_part(scope: Scope) -> Part:
    """The token set that a scope's states belong to. Of a stage it is also the pool that references come from."""
    parts: dict[Scope, Part] = {"general": "corpus", "augmented": "augmented"}
    return parts.get(scope, "train")


def fold_scope(fold: int) -> Scope:
    """The scope of the teacher that was not fine-tuned on the rows of a fold."""
    scopes: tuple[Scope, ...] = ("fold-0", "fold-1")
    return scopes[fold]


def fold_of(scope: Scope) -> int | None:
    """The fold that a scope's teacher was not fine-tuned on; None where there is none."""
    return int(scope[-1]) if scope.startswith("fold-") else None


def trained_scope(exp: Experiment, stage: Stage) -> Scope:
    """The scope of what students are trained on in a stage: in the task stage copies, too, where there are some."""
    return "augmented" if stage == "task" and exp.task and exp.task.augment else stage


def cache_stage(scope: Scope) -> str:
    """The stage of the pipeline that writes a scope's states."""
    return "cache-general" if scope == "general" else "cache-task"


def teacher_spec(exp: Experiment, scope: Scope) -> str:
    """Where the scope's teacher is loaded from."""
    return exp.teacher.model if scope == "general" else str(task_teacher(exp, fold_of(scope)))


def value_layer(exp: Experiment) -> int:
    """Teacher layer that feeds the reference values, counted from 1."""
    layer = exp.references.value_layer
    return teacher_info(exp.teacher.model).layers if layer == -1 else layer


def caches_targets(exp: Experiment) -> bool:
    """Whether the losses read the teacher from the cache."""
    return exp.distill.targets == "cache"


def caches_references(exp: Experiment) -> bool:
    """Whether the references' states are read from the cache."""
    return exp.references.count > 0 and exp.references.states == "cache"


def is_cached(exp: Experiment) -> bool:
    """Whether this experiment has teacher caches at all."""
    return caches_targets(exp) or caches_references(exp)


def stored_layers(exp: Experiment, scope: Scope = "task") -> tuple[int, ...]:
    """Teacher layers that this experiment stores; layer 0, the embedding output, is always recomputed from the ids.

    The attention losses recompute queries and keys of layer l from its *input*, the output of layer l-1. Of a fold only
    what references are read from is stored.
    """
    if fold_of(scope) is not None:
        return tuple(sorted({exp.references.key_layer, value_layer(exp)} - {0}))
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
    """Teacher layers that the losses and the references of this experiment read from the cache, 0 included."""
    weights = exp.distill.weights
    layers: set[int] = set()
    if caches_targets(exp):
        mapped = layer_map(exp.distill.layer_map, exp.student.layers, teacher_info(exp.teacher.model).layers)
        if weights.hidden:
            layers |= set(mapped)
        if weights.attention:
            layers |= {layer - 1 for layer in mapped}
    if caches_references(exp):
        layers |= {exp.references.key_layer, value_layer(exp)}
    return tuple(sorted(layers))


def stores_logits(exp: Experiment, scope: Scope) -> bool:
    """Whether the classifier's outputs are stored, too."""
    told = caches_references(exp) and exp.references.label == "teacher"
    return (caches_targets(exp) and scope in ("task", "augmented")) or (told and scope not in ("general", "augmented"))


def stored_part(exp: Experiment, scope: Scope) -> dict[str, int | None]:
    """How many samples are stored and how many tokens of each; None is all.

    Targets are needed of every token. References alone are needed of the pool only, as far as they are read.
    """
    if caches_targets(exp) and fold_of(scope) is None:
        return {"samples": None, "cut": None}
    return {
        "samples": exp.references.pool_samples if scope == "general" else None,
        "cut": exp.references.max_length,
    }


def cache_plan(exp: Experiment, scope: Scope, lengths: np.ndarray) -> CachePlan:
    """What lies where in a scope's cache; ``lengths`` are those of all samples of the scope's token set."""
    stored = stored_part(exp, scope)
    rows = pool_rows(len(lengths), stored["samples"] or len(lengths))
    return CachePlan(rows, lengths[rows], stored["cut"], exp.cache.shard_tokens)


def states_artifact(exp: Experiment, scope: Scope) -> Artifact:
    """The cache folder of a scope."""
    source = exp.teacher.model if scope == "general" else task_teacher(exp, fold_of(scope)).name
    recipe = {
        "scope": scope,
        "teacher": source,
        "tokens": tokens_artifact(exp, scope_part(scope)).path.name,
        "layers": stored_layers(exp, scope),
        "logits": stores_logits(exp, scope),
        "stored": stored_part(exp, scope),
        "precision": exp.cache.precision,
        "shard_tokens": exp.cache.shard_tokens,
        "batch_tokens": exp.cache.batch_tokens,
        "plan": PLAN_VERSION,
        "codec": codec_version(exp.cache.codec),
    }
    return Artifact(exp.cache.dir / "teacher" / recipe_key("teacher-states", recipe))


def ingredients(exp: Experiment, scope: Scope, tokens: TokenSet) -> dict[str, Any]:
    """Content fingerprints of everything the states depend on."""
    return {
        "teacher": weights_fingerprint(model_folder(teacher_spec(exp, scope))),
        "tokenizer": tokens.artifact.manifest()["tokenizer"],
        "data": tokens.fingerprint,
        "layers": list(stored_layers(exp, scope)),
        "stored": stored_part(exp, scope),
        "precision": exp.cache.precision,
        "plan": PLAN_VERSION,
        "codec": codec_version(exp.cache.codec),
    }


def check_made_from(artifact: Artifact, expected: Mapping[str, Any]) -> None:
    """Refuse a cache, finished or not, that was made from something else, or that is not begun."""
    record = artifact.manifest() if artifact.complete else artifact.sidecar(RECIPE)
    if record is None:
        raise RefusedError(f"{artifact.path} holds no teacher cache yet; run refbert cache build")
    check_ingredients(artifact, record["ingredients"], expected)


def check_ingredients(artifact: Artifact, made_from: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a cache, or a shard of one, that was made from something else; names the first ingredient that differs."""
    for name, value in expected.items():
        if made_from.get(name) != value:
            raise UserError(
                f"the teacher cache {artifact.path} was made with another {name} ({made_from.get(name)} then, {value} "
                "now); set another cache.dir, or remove that folder"
            )
