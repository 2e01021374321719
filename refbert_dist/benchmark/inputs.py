"""Inputs of a network alone: what they say is all the same to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refbert_dist.inference.networks import Gathered, Tokens


def random_inputs(
    config: Mapping[str, Any], batch: int, length: int, count: int, tokens: int
) -> tuple[Tokens, Gathered | None]:
    """A full batch ``[batch, length]`` for a model with this ``config.json``.

    Beside it ``count`` projected references of ``tokens`` tokens each, for every input.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(5, config["vocab_size"], (batch, length))
    given = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    if not count:
        return given, None
    shape = (batch, count, tokens)
    keys, values = rng.standard_normal((2, *shape, config["hidden_size"]), np.float32)
    return given, (keys, values, np.ones(shape, bool))
