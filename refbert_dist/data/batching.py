"""From unpadded samples to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from refbert_dist.data.tokens import TokenSet


def pad_rows(rows: Sequence[np.ndarray], fill: float = 0) -> np.ndarray:
    """Stack arrays ``[L_i, ...]`` into ``[N, max L, ...]``, filled up with ``fill``."""
    longest = max((len(row) for row in rows), default=0)
    first = rows[0]
    result = np.full((len(rows), longest, *first.shape[1:]), fill, dtype=first.dtype)
    for index, row in enumerate(rows):
        result[index, : len(row)] = row
    return result


def length_mask(lengths: Sequence[int] | np.ndarray, longest: int | None = None) -> np.ndarray:
    """Boolean mask ``[N, max L]`` of real positions."""
    lengths = np.asarray(lengths)
    longest = int(lengths.max(initial=0)) if longest is None else longest
    return np.arange(longest)[None, :] < lengths[:, None]


def token_batch(tokens: TokenSet, samples: np.ndarray, pad_id: int, cut: int | None = None) -> dict[str, torch.Tensor]:
    """``input_ids``, ``token_type_ids`` (int64) and ``attention_mask`` (int64), each ``[N, max L]``."""
    ids = [tokens.ids(int(sample))[:cut] for sample in samples]
    types = [tokens.types(int(sample))[:cut] for sample in samples]
    return {name: torch.from_numpy(array) for name, array in pad_tokens(ids, types, pad_id).items()}


def pad_tokens(ids: Sequence[np.ndarray], types: Sequence[np.ndarray], pad_id: int) -> dict[str, np.ndarray]:
    """As :func:`token_batch`, of the ids and types of each sample, in numpy."""
    return {
        "input_ids": pad_rows(ids, pad_id).astype(np.int64),
        "token_type_ids": pad_rows(types).astype(np.int64),
        "attention_mask": length_mask([len(row) for row in ids]).astype(np.int64),
    }


def pad_batch(batch: dict[str, torch.Tensor], length: int, pad_id: int) -> dict[str, torch.Tensor]:
    """A batch of :func:`token_batch`, further padded to ``[N, length]``."""
    fills = {"input_ids": pad_id}
    return {
        name: torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=fills.get(name, 0))
        for name, tensor in batch.items()
    }


def to_device(batch: dict[str, torch.Tensor], device: torch.device | str) -> dict[str, torch.Tensor]:
    """Move every tensor of a batch."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
