"""Teacher states of each sample's references, as the student's first layer reads them."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from refbert_dist.cache.states import TeacherStates
from refbert_dist.config import LABEL_WIDTH
from refbert_dist.data.batching import length_mask, pad_rows, to_device, token_batch
from refbert_dist.data.tokens import TokenSet
from refbert_dist.models.teacher import Teacher

References = dict[str, torch.Tensor]
"""``reference_keys`` and ``reference_values`` float ``[B, K, R, T]``, ``reference_mask`` bool ``[B, K, R]``."""


class ReferenceStates:
    """Looks up references in the pool they were retrieved from.

    Layer 0, the teacher's embedding output, is a function of the token ids alone and is recomputed; other layers come
    from ``states``. The teacher saw the whole text of a reference; only its first ``max_length`` tokens are read.

    With ``labels`` float32 ``[P, LABEL_WIDTH]`` every reference begins with one more token, which tells the label of
    its row. States then have T + LABEL_WIDTH numbers: the label's token has zeros where the others have states, and
    they have zeros where it has the label, so that one projection maps both and neither disturbs the other.
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
        labels: np.ndarray | None = None,
    ) -> None:
        self.pool = pool
        self.states = states
        self.teacher = teacher
        self.key_layer = key_layer
        self.value_layer = value_layer
        self.max_length = max_length
        self.device = device
        self.labels = labels

    def gather(self, neighbours: np.ndarray) -> References:
        """References of ``neighbours [B, K]``: pool rows, -1 where there is none (masked as a whole)."""
        flat = neighbours.reshape(-1)
        # A missing reference needs some row to stand in its place; the mask hides it.
        rows = np.where(flat < 0, 0, flat)
        keys, values = self.rows(rows)
        return references_of(keys, values, np.where(flat < 0, 0, self.lengths(rows)), neighbours.shape)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of each pool row that are read, the label's included, int64 ``[N]``."""
        tokens: np.ndarray = np.minimum(self.pool.lengths[rows], self.max_length).astype(np.int64)
        return tokens + (self.labels is not None)

    @torch.no_grad()
    def rows(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[N, R, T]`` of pool rows, padded."""
        layers = sorted({self.key_layer, self.value_layer} - {0})
        stored = self.states.layers(rows, layers, self.max_length) if layers else {}
        found = {layer: torch.from_numpy(pad_rows(of_layer)).to(self.device) for layer, of_layer in stored.items()}
        if 0 in (self.key_layer, self.value_layer):
            batch = to_device(token_batch(self.pool, rows, self.teacher.pad_token_id, self.max_length), self.device)
            found[0] = self.teacher.embed(batch["input_ids"], batch["token_type_ids"])
        if self.labels is not None:
            told = torch.from_numpy(self.labels[rows]).to(self.device)
            found = {layer: with_label(of_layer, told) for layer, of_layer in found.items()}
        return found[self.key_layer], found[self.value_layer]


class LabelStates:
    """References of which nothing is known but the label: a control."""

    def __init__(self, labels: np.ndarray, width: int, device: torch.device) -> None:
        """``labels`` float32 ``[P, LABEL_WIDTH]`` of the pool's rows; ``width``: the teacher's."""
        self.labels = labels
        self.width = width
        self.device = device

    def gather(self, neighbours: np.ndarray) -> References:
        """As :meth:`ReferenceStates.gather`, with one token a reference."""
        flat = neighbours.reshape(-1)
        told = torch.from_numpy(self.labels[np.where(flat < 0, 0, flat)]).to(self.device)
        token = with_label(told.new_zeros(len(flat), 0, self.width), told)
        return references_of(token, token, (flat >= 0).astype(np.int64), neighbours.shape)


def references_of(keys: torch.Tensor, values: torch.Tensor, lengths: np.ndarray, shape: tuple[int, ...]) -> References:
    """``[B * K, R, T]`` and ``lengths [B * K]`` as the model is given them; ``shape`` is ``(B, K)``."""
    mask = torch.from_numpy(length_mask(lengths, keys.shape[1])).to(keys.device)
    return {
        "reference_keys": keys.reshape(*shape, *keys.shape[1:]),
        "reference_values": values.reshape(*shape, *values.shape[1:]),
        "reference_mask": mask.reshape(*shape, -1),
    }


def with_label(states: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """A token of labels ``told [N, LABEL_WIDTH]``, then ``states [N, R, T]``: ``[N, R + 1, T + LABEL_WIDTH]``."""
    token = pad(told, (states.shape[2], 0))[:, None]
    return torch.cat([token, pad(states, (0, LABEL_WIDTH))], dim=1)


def gold_labels(labels: np.ndarray, classes: int, highest: float) -> np.ndarray:
    """What gold labels ``[N]`` tell, float32 ``[N, LABEL_WIDTH]``.

    A class is a 1 in its place; a score (``classes`` is 1) is divided by the ``highest``. The last number is always 1,
    so that no label looks like nothing.
    """
    return _told(labels[:, None] if classes == 1 else np.eye(classes)[labels.astype(np.int64)], highest)


def taught_labels(logits: torch.Tensor, highest: float) -> np.ndarray:
    """What a teacher's ``logits [N, C]`` tell: its probabilities, or its score, as :func:`gold_labels` gives them."""
    return _told((logits if logits.shape[1] == 1 else logits.softmax(dim=1)).cpu().numpy(), highest)


def _told(answers: np.ndarray, highest: float) -> np.ndarray:
    told = np.zeros((len(answers), LABEL_WIDTH), np.float32)
    told[:, : answers.shape[1]] = answers / highest if answers.shape[1] == 1 else answers
    told[:, -1] = 1.0
    return told
