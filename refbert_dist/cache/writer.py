"""Run the teacher once over every stored sample and commit its states, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from refbert_dist.artifacts import Artifact, WorkList, hash_strings, require_free_space, save_tensors
from refbert_dist.cache.codec import bytes_per_token, is_trained, train_codebook
from refbert_dist.cache.contract import (
    RECIPE,
    Scope,
    cache_plan,
    check_ingredients,
    check_made_from,
    ingredients,
    scope_part,
    states_artifact,
    stored_layers,
    stores_logits,
)
from refbert_dist.cache.forward import TeacherForward, kept, load_teacher
from refbert_dist.cache.plan import CODEBOOK, CachePlan, ShardPlan, batches_by_length
from refbert_dist.cache.shard_writer import ShardWriter, codebook_hash, open_codecs
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import of_first, sharded_loading
from refbert_dist.engine.world import World
from refbert_dist.models.locate import teacher_info
from refbert_dist.tracking.progress import Progress


def build_states(exp: Experiment, scope: Scope, world: World) -> dict[str, Any]:
    """Write undone shards of a scope's cache until all are committed by whomever; returns the manifest.

    The processes of ``world`` hold one teacher together. Other groups may work on the same cache at the same time.
    """
    tokens = TokenSet.open(tokens_artifact(exp, scope_part(scope)))
    artifact = states_artifact(exp, scope)
    made_from = ingredients(exp, scope, tokens)
    plan = cache_plan(exp, scope, tokens.lengths)
    if of_first(artifact.complete):
        check_made_from(artifact, made_from)
        return artifact.manifest()
    if world.rank == 0:
        _require_space(exp, scope, plan, artifact)
        _claim_folder(artifact, made_from)

    with sharded_loading(world, exp.cache.precision):
        teacher = load_teacher(exp, scope)
    forward = TeacherForward(teacher, tokens, plan, stored_layers(exp, scope), stores_logits(exp, scope), exp, world)
    meta: dict[str, Any] = {"made_from": _digest(made_from)}
    names = [RECIPE, *plan.names]
    if is_trained(exp.cache.codec):
        names.insert(1, CODEBOOK)
        work = WorkList(artifact, [CODEBOOK]) if world.rank == 0 else None
        while of_first(work.next() if work else None):
            _train_codecs(exp, forward, artifact, meta)
        torch.distributed.barrier()
        meta[CODEBOOK] = codebook_hash(artifact)
    codecs = open_codecs(artifact, exp.cache.codec, forward.layers, teacher.hidden_size)
    work = WorkList(artifact, plan.names, world.share_start(len(plan.names))) if world.rank == 0 else None
    with (
        ShardWriter(artifact, plan, codecs, meta) as writer,
        Progress(f"cache-{scope}", int(plan.stored.sum()), "tokens", exp.run.dir, enabled=world.is_main) as progress,
    ):
        while True:
            for shards in _rounds(work, plan, world):
                done = _committed_tokens(plan, artifact) if world.is_main else 0
                for tokens_of_round in _write_round(forward, writer, plan, shards, exp.cache.batch_tokens, world):
                    progress.update(done + tokens_of_round)
            writer.drain()
            torch.distributed.barrier()
            if not of_first(work.undone() if work else None):
                break
        progress.update(int(plan.stored.sum()))
    if world.rank == 0 and not artifact.complete:
        _finish(artifact, names, scope, made_from, meta)
    torch.distributed.barrier()
    return artifact.manifest()


def _claim_folder(artifact: Artifact, made_from: Mapping[str, Any]) -> None:
    """Say what the folder's shards are made from, or refuse it when another writer has said otherwise."""
    artifact.commit(RECIPE, {}, {"ingredients": made_from})
    check_made_from(artifact, made_from)


def _require_space(exp: Experiment, scope: Scope, plan: CachePlan, artifact: Artifact) -> None:
    committed = artifact.committed()
    missing = sum(
        int(plan.stored[shard.start : shard.stop].sum()) for shard in plan.shards if shard.name not in committed
    )
    width = teacher_info(exp.teacher.model).hidden
    needed = missing * len(stored_layers(exp, scope)) * bytes_per_token(exp.cache.codec, width)
    require_free_space(artifact.path, int(needed), "the teacher cache")


def _finish(
    artifact: Artifact, names: list[str], scope: Scope, made_from: dict[str, Any], meta: dict[str, Any]
) -> None:
    for name in names:
        sidecar = artifact.sidecar(name)
        if name not in (RECIPE, CODEBOOK) and sidecar is not None:
            check_ingredients(artifact, sidecar, meta)
    artifact.finish(names, {"kind": "teacher-states", "scope": scope, "ingredients": made_from})


def _digest(made_from: Mapping[str, Any]) -> str:
    return hash_strings(f"{name}={value}" for name, value in sorted(made_from.items()))


def _committed_tokens(plan: CachePlan, artifact: Artifact) -> int:
    committed = artifact.committed()
    return sum(int(plan.stored[shard.start : shard.stop].sum()) for shard in plan.shards if shard.name in committed)


def _rounds(work: WorkList | None, plan: CachePlan, world: World) -> Iterator[list[ShardPlan]]:
    """Shards for the processes of this group, one for each at most; only its first process has the list."""
    by_name = {shard.name: shard for shard in plan.shards}
    while True:
        taken: list[str] = []
        if work is not None:
            first = work.next()
            taken = [first] if first else []
            while taken and len(taken) < world.size and (more := work.next(wait=False)):
                taken.append(more)
        taken = of_first(taken)
        if not taken:
            return
        yield [by_name[name] for name in taken]


def _write_round(
    forward: TeacherForward, writer: ShardWriter, plan: CachePlan, shards: list[ShardPlan], budget: int, world: World
) -> Iterator[int]:
    """Every process writes its own shard; yields the tokens that it has done after each forward pass.

    All make the same number of passes, because ZeRO-3 gathers weights from all of them in every pass.
    """
    batches = [list(plan.batches(shard, budget)) for shard in shards]
    mine = batches[world.rank] if world.rank < len(shards) else []
    shard = writer.open(shards[world.rank]) if mine else None
    done = 0
    for number in range(max(map(len, batches))):
        if shard is not None and number < len(mine):
            writer.add(shard, mine[number], forward(mine[number]))
            done += int(plan.stored[mine[number]].sum())
        else:
            forward(batches[0][0][:1])
        yield done
    if shard is not None:
        writer.commit(shard)


def _train_codecs(exp: Experiment, forward: TeacherForward, artifact: Artifact, meta: Mapping[str, Any]) -> None:
    """Learn a codebook for each layer from evenly spread samples, and commit them as a shard of their own."""
    samples: dict[int, list[np.ndarray]] = {layer: [] for layer in forward.layers}
    for rows in batches_by_length(forward.plan.lengths, forward.plan.training_rows(), exp.cache.batch_tokens):
        states = forward(rows)
        for layer, found in samples.items():
            found.append(kept(forward.plan, rows, states[f"h{layer}"]).float().cpu().numpy())
    arrays = {
        f"h{layer}.{name}": array
        for layer, found in samples.items()
        for name, array in train_codebook(exp.cache.codec, np.concatenate(found)).items()
    }
    artifact.commit(CODEBOOK, {"safetensors": save_tensors(arrays)}, meta)
