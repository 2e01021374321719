"""How a state is stored: four codecs behind one surface, chosen by ``cache.codec``.

A codec's name and version are part of every cache's identity, so this module only plans; it loads neither torch nor
faiss until a codec is opened or trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from refbert_dist.cache.codecs import PQ_ASKS
from refbert_dist.errors import UserError, did_you_mean
from refbert_dist.faiss_library import require_faiss

if TYPE_CHECKING:
    import torch

INT4_GROUP = 64
"""Values that share a scale."""
PQ_NARROW = 384
"""Width up to which 4 values make a byte; beyond it 8 do, so that 768 and less take at most 100 bytes."""
PQ_STAGES = 4
"""Bytes that name centroids of the whole state."""
SAMPLE_TOKENS = 32768
"""Tokens that a codebook is best trained on: with half of them the error is 4 % larger, with twice 3 % smaller."""


class Codec(Protocol):
    """Turns states of one teacher layer into arrays and back. T is the teacher's width, N a number of tokens."""

    def encode(self, states: torch.Tensor) -> dict[str, np.ndarray]:
        """Float ``[N, T]`` on any device to arrays whose first axis is N, by suffix: ``""`` the main one, ``scale``.

        Raises RefusedError for states that are not finite or too large for the codec.
        """

    def decode(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """The arrays, or the same slice of each, to float32 ``[N, T]``."""


@dataclass(frozen=True)
class _Format:
    version: int
    """Raised whenever the same states would be stored as other bytes."""
    bytes: Callable[[int], int]
    multiple: Callable[[int], int]
    """What the width must be a multiple of."""


def _pq_run(width: int) -> int:
    """Neighbouring values that one byte stands for."""
    return 4 if width <= PQ_NARROW else 8


_FORMATS = {
    "fp16": _Format(1, lambda width: 2 * width, lambda _: 1),
    "int8": _Format(1, lambda width: width + 4, lambda _: 1),
    "int4": _Format(1, lambda width: width // 2 + 2 * width // INT4_GROUP, lambda _: INT4_GROUP),
    "pq": _Format(1, lambda width: PQ_STAGES + width // _pq_run(width), _pq_run),
}


def codec_version(name: str) -> str:
    """Name and version, such as ``int8/1``. Raises UserError for an unknown name, as all functions here do."""
    return f"{name}/{_format(name).version}"


def bytes_per_token(name: str, width: int) -> float:
    """Bytes that one layer's state of one token takes."""
    return float(_format(name).bytes(width))


def check_codec(name: str, width: int) -> None:
    """Raise UserError when the codec cannot hold states of ``width``, or needs faiss and it is not installed."""
    _check_width(name, width)
    if is_trained(name):
        require_faiss(*PQ_ASKS)


def is_trained(name: str) -> bool:
    """True for a codec whose codebook is trained on a sample of the layer's states."""
    _format(name)
    return name == "pq"


def train_codebook(name: str, sample: np.ndarray) -> dict[str, np.ndarray]:
    """Codebook of one layer from float32 ``[N, T]``; the same sample gives the same bytes.

    The experiment's seed does not count: runs of all seeds share a cache.
    """
    if not is_trained(name):
        raise ValueError(f"codec '{name}' has no codebook")
    from refbert_dist.cache.codecs.product import train

    return train(sample, PQ_STAGES, _pq_run(sample.shape[1]))


def open_codec(name: str, width: int, codebook: Mapping[str, np.ndarray] | None = None) -> Codec:
    """A codec for states of ``width``, with the layer's own ``codebook`` if it is trained; decoding needs no faiss."""
    _check_width(name, width)
    from refbert_dist.cache.codecs import product, scalar

    if name == "fp16":
        return scalar.Float16()
    if name == "int8":
        return scalar.Int8()
    if name == "int4":
        return scalar.Int4(INT4_GROUP)
    if codebook is None:
        raise ValueError(f"codec '{name}' needs a codebook")
    codec = product.Product(codebook)
    if codec.width != width:
        raise ValueError(f"a codebook for width {codec.width} cannot hold states of width {width}")
    return codec


def _check_width(name: str, width: int) -> None:
    multiple = _format(name).multiple(width)
    if width % multiple:
        raise UserError(
            f"cache.codec is '{name}', which needs a teacher width that is a multiple of {multiple}, but the teacher's "
            f"is {width}; use cache.codec=int8"
        )


def _format(name: str) -> _Format:
    if name not in _FORMATS:
        raise UserError(
            f"cache.codec is '{name}', which is not known{did_you_mean(name, _FORMATS)} (known: {', '.join(_FORMATS)})"
        )
    return _FORMATS[name]
