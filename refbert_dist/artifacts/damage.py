"""Is a file what was committed? Quickly by size and header, or by every byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbert_dist.artifacts.keys import hash_file
from refbert_dist.artifacts.tensors import read_header
from refbert_dist.errors import RefusedError

PARQUET_MARK = b"PAR1"
"""With these bytes a Parquet file begins and ends."""


@dataclass(frozen=True)
class Damage:
    """One thing that verification found wrong."""

    shard: str
    """Name of the shard, or ``manifest``."""
    reason: str


def file_damage(path: Path, described: Mapping[str, Any], full: bool) -> str | None:
    """What is wrong with a committed file, None if nothing is.

    Args:
        path: the file.
        described: its ``bytes`` and ``xxh3`` as committed.
        full: hash the content; otherwise size and header are looked at.
    """
    try:
        size = path.stat().st_size
        if size != described["bytes"]:
            return f"{path.name} has {size} bytes instead of {described['bytes']}"
        if full:
            return None if hash_file(path) == described["xxh3"] else f"{path.name} has another content than committed"
        fault = _header_fault(path)
        return f"{path.name} is damaged: {fault}" if fault else None
    except FileNotFoundError:
        return f"{path.name} is missing"
    except PermissionError:
        raise RefusedError(f"{path} cannot be read: permission denied; ask its owner for the right to read") from None
    except OSError as error:  # A disk that fails, a file server that has lost the file.
        return f"{path.name} cannot be read ({error.strerror})"


def _header_fault(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except ValueError as error:
            return str(error)
    if path.suffix == ".parquet":
        with path.open("rb") as stream:
            first = stream.read(len(PARQUET_MARK))
            stream.seek(-len(PARQUET_MARK), 2)
            last = stream.read()
        if first != PARQUET_MARK or last != PARQUET_MARK:
            return "it does not begin and end as a Parquet file does"
    return None
