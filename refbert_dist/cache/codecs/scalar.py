"""Codecs that round every value by itself: float16, int8 with a scale per token, int4 with a scale per group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from refbert_dist.errors import RefusedError

FLOAT16_MAX = 65504
INT8_MAX = 127
INT4_POWER = 1.5
"""Levels lie at powers of evenly spaced numbers. 1.5 is near the best from 1.4 to 2 for MiniLM's states, and leaves
half the error of even steps where one dimension is far larger than the rest."""
INT4_CELLS = 1023
"""Cells on each side of 0 whose nearest level is looked up, which is an order of magnitude faster than searching."""


class Float16:
    """Relative error at most 2^-11 for normal values."""

    def encode(self, states: Tensor) -> dict[str, np.ndarray]:
        """See :class:`refbert_dist.cache.codec.Codec`."""
        return {"": to_float16(states, "fp16").cpu().numpy()}

    def decode(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :class:`refbert_dist.cache.codec.Codec`."""
        return stored[""].astype(np.float32)


class Int8:
    """127 even steps each way up to the token's largest magnitude; the error is at most half a step."""

    def encode(self, states: Tensor) -> dict[str, np.ndarray]:
        """See :class:`refbert_dist.cache.codec.Codec`."""
        require_finite(states)
        states = states.float()
        scale = states.abs().amax(-1, keepdim=True) / INT8_MAX
        # A row of zeros has scale 0, and any divisor keeps it zero.
        codes = (states / scale.masked_fill(scale == 0, 1)).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
        return {"": codes.cpu().numpy(), "scale": scale[:, 0].cpu().numpy()}

    def decode(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :class:`refbert_dist.cache.codec.Codec`."""
        states: np.ndarray = np.multiply(stored[""], stored["scale"][:, None], dtype=np.float32)
        return states


class Int4:
    """Groups of values share a scale, their value of largest magnitude with its sign; two values make a byte.

    A value is stored as one of 16 levels between -0.82 and 1 times the scale. They lie closer near zero: an outlier
    sets the scale of its group, and of its neighbours even steps would leave nothing.
    """

    def __init__(self, group: int) -> None:
        """``group``: values that share a scale; the width is a multiple of it."""
        steps = torch.arange(-7, 9) / 8
        levels = steps.sign() * steps.abs() ** INT4_POWER
        cells = torch.arange(-INT4_CELLS, INT4_CELLS + 1) / INT4_CELLS
        self.group = group
        self.levels = levels.numpy()
        self._nearest = torch.bucketize(cells, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
        # The two values of a byte are looked up at once, as one number of 64 bits.
        self._pairs = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], -1).numpy().view(np.uint64)[:, 0]

    def encode(self, states: Tensor) -> dict[str, np.ndarray]:
        """See :class:`refbert_dist.cache.codec.Codec`."""
        groups = states.float().reshape(len(states), states.shape[1] // self.group, self.group)
        largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scale = to_float16(largest, "int4")
        # Divided by the scale as it is stored, whose own rounding so costs nothing.
        ratios = (groups / scale.float().masked_fill(scale == 0, 1)).clamp_(-1, 1)
        cells = ratios.mul_(INT4_CELLS).add_(INT4_CELLS).round_().to(torch.int32)
        codes = self._nearest.to(states.device).index_select(0, cells.flatten()).view(states.shape)
        packed = codes[:, ::2] | codes[:, 1::2] << 4
        return {"": packed.cpu().numpy(), "scale": scale[..., 0].cpu().numpy()}

    def decode(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :class:`refbert_dist.cache.codec.Codec`."""
        codes, scale = stored[""], stored["scale"]
        states: np.ndarray = np.take(self._pairs, codes).view(np.float32).reshape(*scale.shape, self.group)
        states *= scale[..., None].astype(np.float32)
        return states.reshape(len(codes), 2 * codes.shape[1])


def to_float16(values: Tensor, codec: str) -> Tensor:
    """Raises RefusedError for what is too large, or not a number."""
    rounded = values.to(torch.float16)
    if not bool(rounded.isfinite().all()):
        require_finite(values)
        raise RefusedError(
            f"a teacher state of magnitude {values.abs().max().item():.3g} does not fit float16 (largest "
            f"{FLOAT16_MAX}); this teacher cannot be cached with cache.codec={codec}, use cache.codec=int8 or "
            "distill.targets=online"
        )
    return rounded


def require_finite(states: Tensor) -> None:
    """Refuse NaN and infinity."""
    if not bool(states.isfinite().all()):
        raise RefusedError(
            "the teacher's states hold values that are not finite (NaN or infinity); check the weights of "
            "teacher.model, or set cache.precision=fp32 if it is bf16"
        )
