"""Encoding, writing and committing in the background, so that the device need not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch

from refbert_dist.artifacts import Artifact, map_tensors, save_tensors
from refbert_dist.cache.codec import Codec, is_trained, open_codec
from refbert_dist.cache.forward import LOGITS, kept
from refbert_dist.cache.plan import CODEBOOK, CachePlan, ShardPlan

PENDING_BATCHES = 4
"""Batches of states that wait for the background thread at most."""


def codebook_hash(artifact: Artifact) -> str | None:
    """Content hash of what a trained codec learned; every shard notes by which it was written."""
    sidecar = artifact.sidecar(CODEBOOK)
    return str(sidecar["files"]["safetensors"]["xxh3"]) if sidecar else None


def open_codecs(artifact: Artifact, codec: str, layers: tuple[int, ...], width: int) -> dict[str, Codec]:
    """For each stored state the codec that wrote it."""
    books: dict[str, dict[str, np.ndarray]] = {f"h{layer}": {} for layer in layers}
    if is_trained(codec):
        for name, array in map_tensors(artifact.file(CODEBOOK, "safetensors")).items():
            state, _, part = name.partition(".")
            books.setdefault(state, {})[part] = array
    return {state: open_codec(codec, width, book or None) for state, book in books.items()}


@dataclass
class OpenShard:
    """Arrays of a shard that is being filled."""

    plan: ShardPlan
    offsets: np.ndarray
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class ShardWriter:
    """Encodes and commits in the background. A failure there is raised by the next call."""

    def __init__(
        self, artifact: Artifact, plan: CachePlan, codecs: Mapping[str, Codec], meta: Mapping[str, Any]
    ) -> None:
        self.artifact = artifact
        self.plan = plan
        self.codecs = codecs
        self.meta = meta
        self._background = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._background.shutdown(cancel_futures=True)

    def open(self, shard: ShardPlan) -> OpenShard:
        """Begin a shard."""
        lengths = self.plan.stored[shard.start : shard.stop]
        return OpenShard(shard, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def add(self, shard: OpenShard, rows: np.ndarray, states: Mapping[str, torch.Tensor]) -> None:
        """Put the states of a batch in their places; returns at once unless too much is waiting."""
        self._submit(self._encode, shard, rows, states)

    def commit(self, shard: OpenShard) -> None:
        """Write and commit a shard after all that was added to it."""
        self._submit(self._commit, shard)

    def drain(self) -> None:
        """Wait until everything is committed."""
        while self._pending:
            self._pending.popleft().result()

    def _submit(self, work: Any, *arguments: Any) -> None:
        while len(self._pending) >= PENDING_BATCHES or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._background.submit(work, *arguments))

    @torch.inference_mode()
    def _encode(self, shard: OpenShard, rows: np.ndarray, states: Mapping[str, torch.Tensor]) -> None:
        first = rows - shard.plan.start
        starts = shard.offsets[first]
        places = np.concatenate(
            [np.arange(start, stop) for start, stop in zip(starts, shard.offsets[first + 1], strict=True)]
        )
        for name, state in states.items():
            if name == LOGITS:
                self._put(shard, name, first, state.float().cpu().numpy(), len(shard.offsets) - 1)
                continue
            for part, array in self.codecs[name].encode(kept(self.plan, rows, state)).items():
                self._put(shard, f"{name}.{part}" if part else name, places, array, int(shard.offsets[-1]))

    @staticmethod
    def _put(shard: OpenShard, name: str, places: np.ndarray, array: np.ndarray, length: int) -> None:
        if name not in shard.arrays:
            shard.arrays[name] = np.empty((length, *array.shape[1:]), array.dtype)
        shard.arrays[name][places] = array

    def _commit(self, shard: OpenShard) -> None:
        self.artifact.commit(
            shard.plan.name,
            {"safetensors": save_tensors({"offsets": shard.offsets, **shard.arrays})},
            {"samples": shard.plan.stop - shard.plan.start, "tokens": int(shard.offsets[-1]), **self.meta},
        )
