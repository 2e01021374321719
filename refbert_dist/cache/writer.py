"""Run the teacher once over every sample and commit its states, shard by shard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from refbert_dist.artifacts import Artifact, require_free_space, save_tensors, shard_name
from refbert_dist.cache.codec import CODEC, encode
from refbert_dist.cache.contract import (
    PRECISION,
    Scope,
    check_ingredients,
    scope_part,
    states_artifact,
    stored_layers,
    teacher_spec,
)
from refbert_dist.cache.plan import PLAN_VERSION, ShardPlan, plan_batches, plan_shards
from refbert_dist.config import Experiment
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import device_of, inference_engine, of_first
from refbert_dist.engine.world import World
from refbert_dist.models.locate import model_folder, weights_fingerprint
from refbert_dist.models.teacher import Teacher
from refbert_dist.tracking.progress import Progress


def ingredients(exp: Experiment, scope: Scope, tokens: TokenSet) -> dict[str, Any]:
    """Content fingerprints of everything the states depend on."""
    return {
        "teacher": weights_fingerprint(model_folder(teacher_spec(exp, scope))),
        "tokenizer": tokens.artifact.manifest()["tokenizer"],
        "data": tokens.fingerprint,
        "layers": list(stored_layers(exp)),
        "precision": PRECISION,
        "plan": PLAN_VERSION,
        "codec": CODEC,
    }


def load_teacher(exp: Experiment, scope: Scope) -> Teacher:
    """The scope's teacher; for a task with its fine-tuned head."""
    if scope == "general":
        return Teacher.load(exp.teacher.model)
    assert exp.task is not None
    return Teacher.load(teacher_spec(exp, scope), num_labels=task_spec(exp.task.name).num_labels)


def build_states(exp: Experiment, scope: Scope, world: World) -> dict[str, Any]:
    """Write the undone shards of a scope's cache; returns the manifest. Does nothing when it is complete."""
    tokens = TokenSet.open(tokens_artifact(exp, scope_part(scope)))
    artifact = states_artifact(exp, scope)
    expected = ingredients(exp, scope, tokens)
    if of_first(artifact.complete):
        manifest = artifact.manifest()
        check_ingredients(artifact, manifest["ingredients"], expected)
        return manifest

    teacher = load_teacher(exp, scope)
    plans = plan_shards(tokens.lengths, exp.cache.shard_tokens)
    undone = of_first([plan for plan in plans if not _stands(artifact, plan, expected)])
    needed = sum(int(tokens.lengths[plan.start : plan.stop].sum()) for plan in undone)
    require_free_space(artifact.path, needed * len(stored_layers(exp)) * teacher.hidden_size * 2, "the teacher cache")

    mine = undone[world.rank :: world.size]
    writer = ShardWriter(inference_engine(teacher.to(device_of(world))), teacher, tokens, exp, scope, device_of(world))
    own = sum(int(tokens.lengths[plan.start : plan.stop].sum()) for plan in mine)
    with Progress(f"cache-{scope}", needed, "tokens", run_dir=exp.run.dir, enabled=world.rank == 0) as progress:
        done = 0
        for plan in mine:
            arrays = []
            for batch, states in writer.batches(plan):
                arrays.append((batch, states))
                done += int(tokens.lengths[batch].sum())
                # The other processes have equal shares, so this one's stands for all.
                progress.update(needed * done // own)
            writer.commit(artifact, plan, arrays, expected)
        torch.distributed.barrier()
        progress.update(needed)
    if world.rank == 0:
        artifact.finish(
            [shard_name(plan.shard) for plan in plans],
            {"kind": "teacher-states", "scope": scope, "ingredients": expected},
        )
    torch.distributed.barrier()
    return artifact.manifest()


def _stands(artifact: Artifact, plan: ShardPlan, expected: dict[str, Any]) -> bool:
    """Whether an earlier, interrupted build has committed the shard; teacher and data must have been the same."""
    sidecar = artifact.sidecar(shard_name(plan.shard))
    if sidecar is None:
        return False
    check_ingredients(artifact, sidecar["ingredients"], expected)
    return True


class ShardWriter:
    """Runs the teacher over the samples of a shard and commits what it says."""

    def __init__(
        self, engine: Any, teacher: Teacher, tokens: TokenSet, exp: Experiment, scope: Scope, device: torch.device
    ) -> None:
        self.engine = engine
        self.teacher = teacher
        self.tokens = tokens
        self.layers = stored_layers(exp)
        self.batch_tokens = exp.cache.batch_tokens
        self.with_logits = scope == "task"
        self.device = device

    @torch.inference_mode()
    def batches(self, plan: ShardPlan) -> Iterable[tuple[np.ndarray, dict[str, list[np.ndarray]]]]:
        """For each batch its samples and, by tensor name, their unpadded encoded states."""
        for samples in plan_batches(self.tokens.lengths, plan, self.batch_tokens):
            batch = to_device(token_batch(self.tokens, samples, self.teacher.pad_token_id), self.device)
            found: dict[str, list[np.ndarray]] = {}
            states = self.engine(**batch, layers=self.layers, with_logits=self.with_logits)
            if self.with_logits:
                *states, logits = states
                found["logits"] = list(logits.float().cpu().numpy()[:, None, :])
            for layer, state in zip(self.layers, states, strict=True):
                rows = state.float().cpu().numpy()
                lengths = self.tokens.lengths[samples].tolist()
                found[f"h{layer}"] = [encode(row[:length]) for row, length in zip(rows, lengths, strict=True)]
            yield samples, found

    def commit(
        self,
        artifact: Artifact,
        plan: ShardPlan,
        batches: list[tuple[np.ndarray, dict[str, list[np.ndarray]]]],
        expected: dict[str, Any],
    ) -> None:
        """Put the samples back in order and commit the shard."""
        order = np.argsort(np.concatenate([samples for samples, _ in batches]), kind="stable")
        lengths = self.tokens.lengths[plan.start : plan.stop]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        arrays = {"offsets": offsets}
        for name in batches[0][1]:
            rows = [row for _, found in batches for row in found[name]]
            arrays[name] = np.concatenate([rows[index] for index in order])
        artifact.commit(
            shard_name(plan.shard),
            {"safetensors": save_tensors(arrays)},
            {
                "samples": plan.stop - plan.start,
                "tokens": int(offsets[-1]),
                "start": plan.start,
                "ingredients": expected,
            },
        )
