"""Queries, keys, values and attention scores of one layer, recomputed from the layer's input.

Stored states are layer inputs, so the attention losses need no attention map on disk: a layer's own projections turn
its input into its scores. ``layer`` counts from 1: layer ``l`` reads ``h[l-1]`` and produces ``h[l]``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from refbert_dist.errors import UserError

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "refbert")
EXACT = (*BERT_LIKE, "mpnet")


def queries_keys_values(encoder: nn.Module, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project ``hidden = h[layer-1]`` ``[B, S, H]`` with the layer's own weights to three ``[B, h, S, H / h]``.

    Raises UserError for an architecture whose layout is not known, ValueError for a layer that does not exist.
    """
    query, key, value = (_projected(encoder, layer, hidden, part) for part in ("query", "key", "value"))
    return query, key, value


def attention_scores(encoder: nn.Module, layer: int, hidden: Tensor) -> Tensor:
    """Scores before the softmax, ``Q K^T / sqrt(d)`` plus MPNet's position bias: ``[B, S, H]`` -> ``[B, h, S, S]``.

    Padding is not masked. Raises as :func:`queries_keys_values`.
    """
    query, key = (_projected(encoder, layer, hidden, part) for part in ("query", "key"))
    # Scaled before the product: there are fewer queries than scores.
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    if _is_mpnet(encoder):
        layers: Any = encoder.encoder
        scores = scores + layers.compute_position_bias(hidden)
    return scores


def _projected(encoder: nn.Module, layer: int, hidden: Tensor, part: Literal["query", "key", "value"]) -> Tensor:
    """One of a layer's projections of its input, ``[B, h, S, H / h]``."""
    attention = _self_attention(encoder, layer)
    states: Tensor = getattr(attention, part[0] if _is_mpnet(encoder) else part)(hidden)
    return states.view(*states.shape[:-1], attention.num_attention_heads, -1).transpose(1, 2)


def _is_mpnet(encoder: Any) -> bool:
    return bool(encoder.config.model_type == "mpnet")


def _self_attention(encoder: Any, layer: int) -> Any:
    model_type = encoder.config.model_type
    if model_type not in EXACT:
        raise UserError(
            f"distill.weights.attention is above 0 but the attention of '{model_type}' cannot be recomputed exactly "
            f"(known: {', '.join(EXACT)}); set distill.weights.attention=0"
        )
    layers = encoder.encoder.layer
    if not 1 <= layer <= len(layers):
        raise ValueError(f"layer {layer} does not exist; the encoder has layers 1 to {len(layers)}")
    attention = layers[layer - 1].attention
    return attention.attn if model_type == "mpnet" else attention.self
