"""Arrays on disk: safetensors files, written from numpy and read through memory maps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refbert_dist.artifacts.disk import Write
from refbert_dist.errors import RefusedError

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header."""
KINDS = {
    "F16": np.float16,
    "F32": np.float32,
    "I64": np.int64,
    "U64": np.uint64,
    "I32": np.int32,
    "U8": np.uint8,
    "I8": np.int8,
}


def save_tensors(arrays: Mapping[str, np.ndarray]) -> Write:
    """A writer of a safetensors file."""

    def write(path: Path) -> None:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    return write


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Memory-mapped arrays of a safetensors file: a slice costs microseconds and reads only its own pages.

    Raises :class:`RefusedError` when the file is cut short or its header is damaged.
    """
    try:
        header, start = read_header(path)
    except ValueError as error:
        raise RefusedError(f"{path} is damaged ({error}); run refbert cache repair") from None
    # As a plain array: memmap's own class makes every slice some microseconds dearer.
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    arrays = {}
    for name, item in header.items():
        begin, end = (start + offset for offset in item["data_offsets"])
        arrays[name] = data[begin:end].view(KINDS[item["dtype"]]).reshape(item["shape"])
    return arrays


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Description of each array by name, and where the arrays' bytes begin; ValueError if it does not fit the file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        start = LENGTH_BYTES + length
        if size < start:
            raise ValueError(f"its header should end at byte {start} of {size}")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop("__metadata__", None)
    try:
        end = start + max((int(item["data_offsets"][1]) for item in header.values()), default=0)
    except (KeyError, TypeError, IndexError):
        raise ValueError("its header does not describe arrays") from None
    if end != size:
        raise ValueError(f"its arrays should end at byte {end}, but the file has {size}")
    return header, start
