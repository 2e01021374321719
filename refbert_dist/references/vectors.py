"""Mean-pooled teacher states of every sample, for dense lookup by a layer that needs the teacher's forward pass.

``CACHE_DIR/vectors/KEY/``: shards of float16 ``[n, T]``, one vector a sample, neither centred nor scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refbert_dist.artifacts import (
    Artifact,
    WorkList,
    hash_strings,
    map_tensors,
    recipe_key,
    save_tensors,
    shard_name,
)
from refbert_dist.cache.plan import PLAN_VERSION, batches_by_length
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import Part, TokenSet, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.models.locate import model_folder, weights_fingerprint

VECTORS_VERSION = 1
"""Raised whenever the same samples would get other vectors."""
SHARD_SAMPLES = 1 << 14


def needs_vectors(exp: Experiment) -> bool:
    """Whether this experiment's lookup goes by states that only the teacher's forward pass gives."""
    return exp.references.retriever == "dense" and exp.references.dense_layer > 0


def vectors_artifact(exp: Experiment, part: Part) -> Artifact:
    """The folder of a part's vectors by ``references.dense_layer``: ``cache.dir/vectors/KEY``."""
    recipe = {
        "teacher": exp.teacher.model,
        "tokens": tokens_artifact(exp, part).path.name,
        "layer": exp.references.dense_layer,
        "batch_tokens": exp.cache.batch_tokens,
        "plan": PLAN_VERSION,
        "version": VECTORS_VERSION,
    }
    return Artifact(exp.cache.dir / "vectors" / recipe_key("vectors", recipe))


def build_vectors(exp: Experiment, part: Part, share_start: Callable[[int], int] = lambda items: 0) -> dict[str, Any]:
    """Run the teacher over every sample and return the manifest; a finished part is only checked.

    Any number of processes may do this at once; each returns when all is done. ``share_start`` gives the place in a
    list of so many shards where this one begins.
    """
    artifact = vectors_artifact(exp, part)
    tokens = TokenSet.open(tokens_artifact(exp, part))
    inputs = {
        "teacher_fingerprint": weights_fingerprint(model_folder(exp.teacher.model)),
        "tokens_fingerprint": tokens.fingerprint,
    }
    if artifact.complete:
        return require_same(artifact.manifest(), inputs, artifact)
    starts = {shard_name(number): start for number, start in enumerate(range(0, len(tokens), SHARD_SAMPLES))}
    pool: Callable[[np.ndarray], np.ndarray] | None = None
    for name in WorkList(artifact, list(starts), share_start(len(starts))):
        # Whoever comes when all shards are taken need not load the teacher.
        pool = pool or _pooling(exp, tokens)
        samples = np.arange(starts[name], min(starts[name] + SHARD_SAMPLES, len(tokens)))
        artifact.commit(
            name, {"safetensors": save_tensors({"vectors": pool(samples)})}, {"samples": len(samples), **inputs}
        )
    sidecars = [require_same(artifact.sidecar(name) or {}, inputs, artifact) for name in starts]
    fingerprint = hash_strings(sidecar["files"]["safetensors"]["xxh3"] for sidecar in sidecars)
    return artifact.finish(list(starts), {"kind": "vectors", "part": part, "fingerprint": fingerprint, **inputs})


def open_vectors(exp: Experiment, part: Part) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the vectors, float32 ``[n, T]``, of samples of a finished part."""
    shards = [map_tensors(path)["vectors"] for path in vectors_artifact(exp, part).files("safetensors")]

    def of(samples: np.ndarray) -> np.ndarray:
        rows = [shards[sample // SHARD_SAMPLES][sample % SHARD_SAMPLES] for sample in samples.tolist()]
        return np.stack(rows).astype(np.float32)

    return of


def require_same(described: dict[str, Any], inputs: dict[str, str], artifact: Artifact) -> dict[str, Any]:
    """``described`` (manifest or sidecar) if it was made from ``inputs``; else :class:`UserError` says what differs."""
    for name, fingerprint in inputs.items():
        if described.get(name) != fingerprint:
            raise UserError(
                f"{artifact.path} was made from something else ({name} differs); choose another cache.dir, or remove "
                "that folder"
            )
    return described


def _pooling(exp: Experiment, tokens: TokenSet) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    from refbert_dist.data.batching import to_device, token_batch
    from refbert_dist.engine.distributed import device_of
    from refbert_dist.engine.memory import explain_out_of_memory
    from refbert_dist.engine.world import World
    from refbert_dist.models.teacher import Teacher

    device = device_of(World.from_environment())
    teacher = Teacher.load(exp.teacher.model).to(device)

    @explain_out_of_memory("dense lookup", f"lower cache.batch_tokens (now {exp.cache.batch_tokens})")
    @torch.inference_mode()
    def pool(samples: np.ndarray) -> np.ndarray:
        vectors = np.empty((len(samples), teacher.hidden_size), np.float16)
        for batch in batches_by_length(tokens.lengths, samples, exp.cache.batch_tokens):
            inputs = to_device(token_batch(tokens, batch, teacher.pad_token_id), device)
            (states,) = teacher(**inputs, layers=(exp.references.dense_layer,))
            mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
            means = (states * mask).sum(1) / mask.sum(1)
            vectors[batch - samples[0]] = means.float().cpu().numpy()
        return vectors

    return pool
