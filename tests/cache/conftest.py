"""States of a real teacher, computed once for all tests of codecs."""

import numpy as np
import pytest
import torch
from minilm_states import HELD_OUT, LAYER, TEXTS
from tiny import MINILM
from transformers import AutoModel, AutoTokenizer

from refbert_dist.cache.codec import train_codebook
from refbert_dist.data.builtin import python_docs_topics
from refbert_dist.models.locate import resolve_model


@pytest.fixture(scope="session")
def encoder() -> torch.nn.Module:
    return AutoModel.from_pretrained(resolve_model(MINILM), attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def texts(encoder: torch.nn.Module) -> list[np.ndarray]:
    """Layer 3's states ``[L, T]`` of passages from all topics, one array a passage."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MINILM))
    passages = [passage for topic in python_docs_topics().values() for passage in topic]
    chosen = np.random.default_rng(0).permutation(len(passages))[:TEXTS]
    found: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, TEXTS, 40):
            rows = [passages[index] for index in chosen[start : start + 40]]
            given = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=64)
            states = encoder(**given, output_hidden_states=True).hidden_states[LAYER].numpy()
            found += [
                row[:length] for row, length in zip(states, given["attention_mask"].sum(-1).tolist(), strict=True)
            ]
    return found


@pytest.fixture(scope="session")
def codebook(texts: list[np.ndarray]) -> dict[str, np.ndarray]:
    return train_codebook("pq", np.concatenate(texts[:-HELD_OUT]))
