"""Teacher states of samples by id: read from the cache, or computed on the spot. Both answer alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from refbert_dist.artifacts import Artifact, map_tensors
from refbert_dist.artifacts.staging import Staging
from refbert_dist.cache.codec import Codec
from refbert_dist.cache.contract import (
    Purpose,
    Scope,
    cache_plan,
    caches_references,
    caches_targets,
    check_made_from,
    ingredients,
    scope_part,
    states_artifact,
    stored_layers,
)
from refbert_dist.cache.forward import LOGITS
from refbert_dist.cache.plan import CODEBOOK, CachePlan
from refbert_dist.cache.shard_writer import codebook_hash, open_codecs
from refbert_dist.config import Experiment
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.models.teacher import Teacher

OPEN_SHARDS = 1024
"""Shards that are kept mapped; a process may have some 65,000 maps in all."""

Shard = dict[str, np.ndarray]


class TeacherStates(Protocol):
    """Where targets and references come from."""

    def layers(self, samples: np.ndarray, layers: Sequence[int], cut: int | None = None) -> dict[int, list[np.ndarray]]:
        """For each layer (1 and up) the float32 states ``[L, T]`` of every sample, unpadded.

        L is the sample's length, at most ``cut``; a cache of references keeps no more than is read of them.
        """

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """The fine-tuned teacher's logits ``[N, C]``."""


class CachedStates:
    """Memory-mapped states of a cache, read by sample id; other shards may still be in the making."""

    def __init__(
        self, artifact: Artifact, plan: CachePlan, codecs: Mapping[str, Codec], staging: Staging | None = None
    ) -> None:
        self.artifact = artifact
        self.plan = plan
        self.codecs = codecs
        self.staging = staging
        self._codebook = codebook_hash(artifact)
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def layers(self, samples: np.ndarray, layers: Sequence[int], cut: int | None = None) -> dict[int, list[np.ndarray]]:
        """See :class:`TeacherStates`."""
        missing = [layer for layer in layers if f"h{layer}" not in self.codecs]
        if missing:
            raise UserError(
                f"cache.layers does not include layer {missing[0]}, which this experiment reads; "
                "set cache.layers=auto or add the layer"
            )
        spans = []
        for shard, place in self._find(samples):
            start, stop = shard["offsets"][place : place + 2].tolist()
            spans.append((shard, slice(start, stop if cut is None else min(stop, start + cut))))
        borders = np.cumsum([span.stop - span.start for _, span in spans])[:-1]
        return {layer: np.split(self._decoded(f"h{layer}", spans), borders) for layer in layers}

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """See :class:`TeacherStates`."""
        return np.stack([shard[LOGITS][place] for shard, place in self._find(samples)])

    def _decoded(self, name: str, spans: Sequence[tuple[Shard, slice]]) -> np.ndarray:
        """All spans of a state, one after the other, float32 ``[sum of L, T]``: one call of the codec for a batch."""
        parts = {part for part in spans[0][0] if part.partition(".")[0] == name}
        stored = {
            part.partition(".")[2]: np.concatenate([shard[part][span] for shard, span in spans]) for part in parts
        }
        return self.codecs[name].decode(stored)

    def _find(self, samples: np.ndarray) -> list[tuple[Shard, int]]:
        shards, places = self.plan.find(samples)
        return [(self._shard(shard), place) for shard, place in zip(shards.tolist(), places.tolist(), strict=True)]

    def _shard(self, number: int) -> Shard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        name = self.plan.shards[number].name
        sidecar = self.artifact.sidecar(name)
        if sidecar is None:
            raise RefusedError(
                f"{self.artifact.path} lacks {name}: it is not written yet, or was removed; run refbert cache build "
                "or refbert cache repair"
            )
        if sidecar.get(CODEBOOK) != self._codebook:
            raise RefusedError(
                f"{self.artifact.path}: {name} was written with another codebook; remove that folder and build the "
                "cache again"
            )
        path = self.artifact.file(name, "safetensors")
        try:
            self._open[number] = map_tensors(self.staging.fetch(path) if self.staging else path)
        except FileNotFoundError:
            raise RefusedError(f"{path} is gone; run refbert cache repair to write it again") from None
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[number]


class OnlineStates:
    """States computed by the teacher at every call: slower, needs no disk."""

    def __init__(self, teacher: Teacher, tokens: TokenSet, device: torch.device) -> None:
        self.teacher = teacher.eval()
        self.tokens = tokens
        self.device = device

    def layers(self, samples: np.ndarray, layers: Sequence[int], cut: int | None = None) -> dict[int, list[np.ndarray]]:
        """See :class:`TeacherStates`."""
        lengths = self.tokens.lengths[samples].tolist()
        states = self._forward(samples, layers, with_logits=False)
        return {
            layer: [row[:length][:cut] for row, length in zip(state, lengths, strict=True)]
            for layer, state in zip(layers, states, strict=True)
        }

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """See :class:`TeacherStates`."""
        return self._forward(samples, (), with_logits=True)[0]

    @torch.inference_mode()
    def _forward(self, samples: np.ndarray, layers: Sequence[int], with_logits: bool) -> list[np.ndarray]:
        batch = to_device(token_batch(self.tokens, samples, self.teacher.pad_token_id), self.device)
        return [state.float().cpu().numpy() for state in self.teacher(**batch, layers=layers, with_logits=with_logits)]


class FoldedStates:
    """States of each row by the teacher that was not fine-tuned on it."""

    def __init__(self, states: Sequence[TeacherStates], folds: np.ndarray) -> None:
        """``states`` of each fold's teacher; ``folds`` int64 ``[N]`` of the rows."""
        self.states = states
        self.folds = folds

    def layers(self, samples: np.ndarray, layers: Sequence[int], cut: int | None = None) -> dict[int, list[np.ndarray]]:
        """See :class:`TeacherStates`."""
        found = {layer: [np.empty(0)] * len(samples) for layer in layers}
        for states, places in self._parts(samples):
            for layer, rows in states.layers(samples[places], layers, cut).items():
                for place, row in zip(places.tolist(), rows, strict=True):
                    found[layer][place] = row
        return found

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """See :class:`TeacherStates`."""
        parts = [(states.logits(samples[places]), places) for states, places in self._parts(samples)]
        order = np.argsort(np.concatenate([places for _, places in parts]))
        joined: np.ndarray = np.concatenate([logits for logits, _ in parts])[order]
        return joined

    def _parts(self, samples: np.ndarray) -> list[tuple[TeacherStates, np.ndarray]]:
        folds = self.folds[samples]
        parts = [(states, np.flatnonzero(folds == fold)) for fold, states in enumerate(self.states)]
        return [(states, places) for states, places in parts if len(places)]


def open_states(
    exp: Experiment, scope: Scope, purpose: Purpose, teacher: Teacher, device: torch.device
) -> TeacherStates:
    """The states that the experiment reads for a purpose; a cache made from anything else is refused."""
    tokens = TokenSet.open(tokens_artifact(exp, scope_part(scope)))
    if not (caches_targets(exp) if purpose == "targets" else caches_references(exp)):
        return OnlineStates(teacher, tokens, device)
    return open_cache(exp, scope, tokens, teacher.hidden_size)


def open_cache(exp: Experiment, scope: Scope, tokens: TokenSet, width: int) -> CachedStates:
    """The scope's cache, finished or not."""
    artifact = states_artifact(exp, scope)
    check_made_from(artifact, ingredients(exp, scope, tokens))
    if artifact.complete:
        artifact.register(exp.run.dir)
    config = exp.cache
    staging = Staging(config.staging_dir, int(config.staging_gb * 1e9)) if config.staging_dir else None
    codecs = open_codecs(artifact, config.codec, stored_layers(exp, scope), width)
    return CachedStates(artifact, cache_plan(exp, scope, tokens.lengths), codecs, staging)
