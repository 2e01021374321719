"""Small RefBERT models with random weights, and what tests of them compare by."""

from typing import Any

import torch
from torch import Tensor

from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertModel

SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
T, K, R = 20, 2, 5
Batch = dict[str, Tensor]


def config(**fields: Any) -> RefBertConfig:
    return RefBertConfig(**{**SHAPE, "reference_size": T, "reference_count": K, **fields})


def build(seed: int = 0, **fields: Any) -> RefBertModel:
    torch.manual_seed(seed)
    return RefBertModel(config(**fields)).eval()


def assert_same(found: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
