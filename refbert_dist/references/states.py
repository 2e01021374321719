"""Teacher states of each sample's references, as the student's first layer reads them."""

from __future__ import annotations

import numpy as np
import torch

from refbert_dist.cache.states import TeacherStates
from refbert_dist.data.batching import length_mask, pad_rows, to_device, token_batch
from refbert_dist.data.tokens import TokenSet
from refbert_dist.models.teacher import Teacher

References = dict[str, torch.Tensor]
"""``reference_keys`` and ``reference_values`` float ``[B, K, R, T]``, ``reference_mask`` bool ``[B, K, R]``."""


class ReferenceStates:
    """Looks up references in the pool they were retrieved from.

    Layer 0, the teacher's embedding output, is a function of the token ids alone and is recomputed; other layers come
    from ``states``. The teacher saw the whole text of a reference; only its first ``max_length`` tokens are read.
    """

    def __init__(
        self,
        pool: TokenSet,
        states: TeacherStates,
        teacher: Teacher,
        *,
        key_layer: int,
        value_layer: int,
        max_length: int,
        device: torch.device,
    ) -> None:
        self.pool = pool
        self.states = states
        self.teacher = teacher
        self.key_layer = key_layer
        self.value_layer = value_layer
        self.max_length = max_length
        self.device = device

    def gather(self, neighbours: np.ndarray) -> References:
        """References of ``neighbours [B, K]``: pool rows, -1 where there is none (masked as a whole)."""
        batch, count = neighbours.shape
        flat = neighbours.reshape(-1)
        # A missing reference needs some row to stand in its place; the mask hides it.
        rows = np.where(flat < 0, 0, flat)
        keys, values = self.rows(rows)
        lengths = np.where(flat < 0, 0, np.minimum(self.pool.lengths[rows], self.max_length))
        mask = torch.from_numpy(length_mask(lengths, keys.shape[1])).to(self.device)
        shape = (batch, count, *keys.shape[1:])
        return {
            "reference_keys": keys.reshape(shape),
            "reference_values": values.reshape(shape),
            "reference_mask": mask.reshape(batch, count, -1),
        }

    @torch.no_grad()
    def rows(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[N, R, T]`` of pool rows, padded."""
        layers = sorted({self.key_layer, self.value_layer} - {0})
        stored = self.states.layers(rows, layers, self.max_length) if layers else {}
        found = {layer: torch.from_numpy(pad_rows(of_layer)).to(self.device) for layer, of_layer in stored.items()}
        if 0 in (self.key_layer, self.value_layer):
            batch = to_device(token_batch(self.pool, rows, self.teacher.pad_token_id, self.max_length), self.device)
            found[0] = self.teacher.embed(batch["input_ids"], batch["token_type_ids"])
        return found[self.key_layer], found[self.value_layer]
