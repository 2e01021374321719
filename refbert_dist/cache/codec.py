"""How a state is stored. One codec so far; its name and version are part of every cache's identity."""

from __future__ import annotations

import numpy as np

from refbert_dist.errors import RefusedError

CODEC = "fp16/1"


def encode(states: np.ndarray) -> np.ndarray:
    """float32 ``[L, T]`` to float16; relative error at most 2^-11 for normal values."""
    with np.errstate(over="ignore"):
        encoded = states.astype(np.float16)
    if not np.isfinite(encoded).all():
        raise RefusedError(
            f"a teacher state of magnitude {np.abs(states).max():.3g} does not fit float16 (largest 65504); "
            "this teacher cannot be cached with the fp16 codec, use distill.targets=online"
        )
    return encoded


def decode(stored: np.ndarray) -> np.ndarray:
    """float16 ``[L, T]`` to float32."""
    return stored.astype(np.float32)
