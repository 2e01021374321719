"""The teacher's states of every pool row, written by all processes together."""

from __future__ import annotations

from typing import Any

from refbert_dist.cache.contract import cache_stage, scopes, states_artifact
from refbert_dist.cache.writer import build_states
from refbert_dist.config import Experiment
from refbert_dist.engine.distributed import process_group
from refbert_dist.engine.memory import caching_advice, explain_out_of_memory


def general(exp: Experiment) -> dict[str, Any]:
    """Cache the teacher as given on the corpus."""
    return _run(exp, "cache-general")


def task(exp: Experiment) -> dict[str, Any]:
    """Cache the fine-tuned teacher on the task's training rows, and on their copies."""
    return _run(exp, "cache-task")


def _run(exp: Experiment, stage: str) -> dict[str, Any]:
    mine = [scope for scope in scopes(exp) if cache_stage(scope) == stage]
    with (
        process_group(exp.engine.timeout_s) as world,
        explain_out_of_memory("caching the teacher's states", caching_advice(exp)),
    ):
        manifests = [build_states(exp, scope, world) for scope in mine]
    for scope in mine:
        states_artifact(exp, scope).register(exp.run.dir)
    return {name: sum(found[name] for found in manifests) for name in ("shards", "samples", "tokens", "bytes")}
