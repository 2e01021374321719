"""Tiny random models on disk, one folder for each architecture."""

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refbert_models import Batch, K, R, T
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 34,
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random model of the named type once and return its folder; ``embedding_size`` and the like may differ."""
    made: dict[str, Path] = {}

    def make(model_type: str, masked_lm: bool = False, **fields: object) -> Path:
        key = f"{model_type}-{masked_lm}-{sorted(fields.items())}"
        if key not in made:
            # By the name alone: which other models are made before depends on the tests that run.
            torch.manual_seed(zlib.crc32(key.encode()))
            config = AutoConfig.for_model(model_type, **{**SHAPE, **fields})
            model = (AutoModelForMaskedLM if masked_lm else AutoModel).from_config(config)
            for parameter in model.parameters():
                # The standard 0.02 gives nearly uniform attention, which would hide mistakes.
                noise = torch.randn_like(parameter)
                parameter.data = 0.8 * noise if parameter.dim() > 1 else parameter.data + 0.1 * noise
            made[key] = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three right-padded inputs of 9, 6 and 4 tokens, the first two of them pairs."""
    torch.manual_seed(7)
    lengths = torch.tensor([9, 6, 4])
    mask = (torch.arange(9)[None, :] < lengths[:, None]).long()
    ids = torch.randint(3, 60, (3, 9)) * mask + (1 - mask)  # 1 is RoBERTa's and MPNet's padding id
    types = torch.zeros_like(ids)
    types[:2, 3:] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@pytest.fixture
def references() -> Batch:
    """Two references for each of three samples, of 5, 3; 4, none; and no tokens."""
    torch.manual_seed(5)
    mask = torch.zeros(3, K, R)
    for sample, reference, length in ((0, 0, 5), (0, 1, 3), (1, 0, 4)):
        mask[sample, reference, :length] = 1
    states = torch.randn(2, 3, K, R, T)
    return {"reference_keys": states[0], "reference_values": states[1], "reference_mask": mask}
