"""Teacher states of samples by id: read from the cache, or computed on the spot. Both answer alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from refbert_dist.artifacts import Artifact, map_tensors
from refbert_dist.cache.codec import decode
from refbert_dist.cache.contract import Scope, check_ingredients, scope_part, states_artifact
from refbert_dist.cache.writer import ingredients
from refbert_dist.config import Experiment
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.models.teacher import Teacher


class TeacherStates(Protocol):
    """Where targets and references come from."""

    def layers(self, samples: np.ndarray, layers: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """For each layer (1 and up) the float32 states ``[L, T]`` of every sample, unpadded."""

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """The fine-tuned teacher's logits ``[N, C]``."""


class CachedStates:
    """Memory-mapped states of a finished cache."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.shards = [map_tensors(path) for path in artifact.files("safetensors")]
        counts = [len(shard["offsets"]) - 1 for shard in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def layers(self, samples: np.ndarray, layers: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """See :class:`TeacherStates`."""
        missing = [layer for layer in layers if f"h{layer}" not in self.shards[0]]
        if missing:
            raise UserError(
                f"cache.layers does not include layer {missing[0]}, which this experiment reads; "
                "set cache.layers=auto or add the layer"
            )
        return {layer: [decode(self._rows(int(sample), f"h{layer}")) for sample in samples] for layer in layers}

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """See :class:`TeacherStates`."""
        found = []
        for sample in samples:
            shard, place = self._find(int(sample))
            found.append(self.shards[shard]["logits"][place])
        return np.stack(found)

    def _find(self, sample: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return shard, sample - int(self.starts[shard])

    def _rows(self, sample: int, name: str) -> np.ndarray:
        shard, place = self._find(sample)
        offsets = self.shards[shard]["offsets"]
        return self.shards[shard][name][int(offsets[place]) : int(offsets[place + 1])]


class OnlineStates:
    """States computed by the teacher at every call: slower, needs no disk."""

    def __init__(self, teacher: Teacher, tokens: TokenSet, device: torch.device) -> None:
        self.teacher = teacher.eval()
        self.tokens = tokens
        self.device = device

    def layers(self, samples: np.ndarray, layers: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """See :class:`TeacherStates`."""
        lengths = self.tokens.lengths[samples].tolist()
        states = self._forward(samples, layers, with_logits=False)
        return {
            layer: [row[:length] for row, length in zip(state, lengths, strict=True)]
            for layer, state in zip(layers, states, strict=True)
        }

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """See :class:`TeacherStates`."""
        return self._forward(samples, (), with_logits=True)[0]

    @torch.inference_mode()
    def _forward(self, samples: np.ndarray, layers: Sequence[int], with_logits: bool) -> list[np.ndarray]:
        batch = to_device(token_batch(self.tokens, samples, self.teacher.pad_token_id), self.device)
        return [state.float().cpu().numpy() for state in self.teacher(**batch, layers=layers, with_logits=with_logits)]


def open_states(exp: Experiment, scope: Scope, teacher: Teacher, device: torch.device) -> TeacherStates:
    """The states that ``distill.targets`` asks for; a cache made from anything else is refused."""
    tokens = TokenSet.open(tokens_artifact(exp, scope_part(scope)))
    if exp.distill.targets == "online":
        return OnlineStates(teacher, tokens, device)
    artifact = states_artifact(exp, scope)
    check_ingredients(artifact, artifact.manifest()["ingredients"], ingredients(exp, scope, tokens))
    artifact.register(exp.run.dir)
    return CachedStates(artifact)
