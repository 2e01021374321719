"""What tests of codecs share: names, sizes, and states to store."""

from collections.abc import Mapping

import numpy as np
import torch

from refbert_dist.cache.codec import Codec, is_trained, open_codec

NAMES = ("fp16", "int8", "int4", "pq")
WIDTH = 384
LAYER = 3
TEXTS = 160
HELD_OUT = 30


def opened(name: str, codebook: Mapping[str, np.ndarray]) -> Codec:
    return open_codec(name, WIDTH, codebook if is_trained(name) else None)


def round_trip(codec: Codec, states: np.ndarray) -> np.ndarray:
    found = codec.decode(codec.encode(torch.from_numpy(states)))
    assert found.dtype == np.float32 and found.shape == states.shape
    return found


def random_states(seed: int, tokens: int = 60, width: int = WIDTH) -> np.ndarray:
    """Rows of very different size; every other time a few dimensions are far larger than the rest, as in BERT."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(tokens, width)) * np.exp(rng.normal(size=(tokens, 1)))
    if seed % 2:
        states[:, rng.integers(width, size=3)] *= rng.uniform(10, 60, size=3)
    return states.astype(np.float32)
