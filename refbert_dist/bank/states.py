"""Projected keys and values of a bank's rows: written in bounded pieces, read through memory maps and checked as read.

A segment file is never changed once it is written. Its arrays are ``keys`` and ``values``, one row of a text after the
other without padding, and what their codec adds to each (``keys.scale``). The table tells where a row lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash

from refbert_dist.artifacts import save_tensors
from refbert_dist.cache.codec import open_codec
from refbert_dist.cache.codecs.scalar import FLOAT16_MAX
from refbert_dist.errors import RefusedError

BankCodec = Literal["fp16", "int8"]
Segment = Mapping[str, np.ndarray]
State = tuple[np.ndarray, np.ndarray]
"""Keys and values of one text, float ``[L, H]``."""

KINDS = ("keys", "values")
SEGMENT_BYTES = 1 << 28


@dataclass(frozen=True)
class RowTable:
    """Where each row lies; arrays of N."""

    ids: np.ndarray
    """int64, ascending; a number is never given twice in the life of a bank."""
    segments: np.ndarray
    """Place in the list of segments, int64."""
    starts: np.ndarray
    """First token within the segment, int64."""
    lengths: np.ndarray
    """Tokens, int64."""
    checks: np.ndarray
    """Hash of the row's bytes as they are stored, int64."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: np.ndarray) -> RowTable:
        return RowTable(**{name: column[rows] for name, column in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """As stored."""
        return dict(vars(self))

    @classmethod
    def joined(cls, tables: Iterable[RowTable]) -> RowTable:
        """Consecutive tables as one."""
        parts = [table.arrays() for table in tables]
        return cls(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


class StateRows:
    """Reads rows. Each is checked when it is read for the first time, so that opening costs nothing."""

    def __init__(self, segments: list[Segment], table: RowTable, codec: BankCodec, width: int, name: str) -> None:
        """``width`` is the student's (H); ``name`` says in errors which bank this is."""
        self.table = table
        self.width = width
        self._segments = segments
        self._codec = open_codec(codec, width)
        self._checked = np.zeros(len(table), bool)
        self._name = name

    def stored(self, row: int) -> dict[str, np.ndarray]:
        """Every array's part that belongs to a row; raises :class:`RefusedError` when a byte of it has changed."""
        table = self.table
        start = int(table.starts[row])
        stop = start + int(table.lengths[row])
        parts = {name: array[start:stop] for name, array in self._segments[table.segments[row]].items()}
        if not self._checked[row]:
            if checksum(parts) != table.checks[row]:
                raise RefusedError(
                    f"the reference bank {self._name} is damaged: the states of reference {table.ids[row]} have "
                    "changed; export the model again"
                )
            self._checked[row] = True
        return parts

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States of ``rows [n]``, -1 for none: keys and values float32 ``[n, R, H]``, zero where mask ``[n, R]`` is."""
        lengths = np.where(rows < 0, 0, self.table.lengths[rows])
        shape = (len(rows), max(1, int(lengths.max(initial=0))))
        keys, values = (np.zeros((*shape, self.width), np.float32) for _ in KINDS)
        for place, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
            if length:
                parts = self.stored(row)
                keys[place, :length] = self._codec.decode(of_kind(parts, "keys"))
                values[place, :length] = self._codec.decode(of_kind(parts, "values"))
        return keys, values, np.arange(shape[1]) < lengths[:, None]


def checksum(parts: Segment) -> int:
    """Of a row's bytes, as int64."""
    digest = xxhash.xxh3_64()
    for name in sorted(parts):
        digest.update(np.ascontiguousarray(parts[name]).data)
    return int.from_bytes(digest.digest(), "big", signed=True)


def of_kind(parts: Segment, kind: str) -> dict[str, np.ndarray]:
    """The codec's own arrays, by the suffixes that it knows."""
    return {name.removeprefix(kind).removeprefix("."): array for name, array in parts.items() if name.startswith(kind)}


def encoded(states: Iterable[State], codec: BankCodec) -> Iterator[dict[str, np.ndarray]]:
    """Rows as they are stored; raises :class:`RefusedError` for numbers that the codec cannot hold."""
    for pair in states:
        parts = {}
        for kind, state in zip(KINDS, pair, strict=True):
            _check_range(kind, state, codec)
            for suffix, array in open_codec(codec, state.shape[1]).encode(torch.from_numpy(state)).items():
                parts[f"{kind}.{suffix}".rstrip(".")] = array
        if len(parts["keys"]) != len(parts["values"]):
            raise ValueError("keys and values have different lengths; give both for the same tokens")
        yield parts


def write_segments(
    rows: Iterable[Mapping[str, np.ndarray]], ids: Iterable[int], path: str, first_segment: int = 0
) -> tuple[list[Path], RowTable]:
    """Write encoded rows into files of bounded size.

    Args:
        rows: from :func:`encoded`, or :meth:`StateRows.stored` of another bank.
        ids: of the rows, ascending; there may be more than rows.
        path: of a file, with ``{}`` for its number.
        first_segment: number of the first file, and its place in the list of all segments.
    """
    files: list[Path] = []
    entries: list[tuple[int, int, int, int, int]] = []
    held: list[Mapping[str, np.ndarray]] = []
    tokens = size = 0

    def flush() -> None:
        nonlocal held, tokens, size
        if held:
            file = Path(path.format(first_segment + len(files)))
            save_tensors({name: np.concatenate([row[name] for row in held]) for name in held[0]})(file)
            files.append(file)
            held, tokens, size = [], 0, 0

    for row, number in zip(rows, ids, strict=False):
        length = len(row["keys"])
        entries.append((number, first_segment + len(files), tokens, length, checksum(row)))
        held.append(row)
        tokens += length
        size += sum(array.nbytes for array in row.values())
        if size >= SEGMENT_BYTES:
            flush()
    flush()
    columns = np.array(entries, np.int64).reshape(-1, 5).T
    return files, RowTable(*columns)


def _check_range(kind: str, state: np.ndarray, codec: BankCodec) -> None:
    largest = float(np.abs(state).max(initial=0))
    if not np.isfinite(largest) or (codec == "fp16" and largest > FLOAT16_MAX):
        raise RefusedError(
            f"the {kind} of the reference bank do not fit {codec} (largest magnitude {largest:.3g}); "
            "train with a smaller learning rate, or look for a diverged run"
        )
