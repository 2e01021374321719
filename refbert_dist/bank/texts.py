"""A bank's texts on disk: read one by one through a memory map, or kept as digests that only tell equal from different.

Layout of a file: ``bytes`` uint8 (UTF-8, one sentence after the other) and ``offsets`` int64, one more than there are
sentences; a row has one sentence or two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
import xxhash

from refbert_dist.artifacts import map_tensors, save_tensors
from refbert_dist.references.guards import TextPair, normalised


def digested(text: TextPair) -> TextPair:
    """Digests of the normalised sentences: equal where :func:`refbert_dist.references.guards.text_key` is."""
    first, second = (None if part is None else xxhash.xxh3_128_hexdigest(normalised(part).encode()) for part in text)
    assert first is not None
    return first, second


class MappedTexts(Sequence[TextPair]):
    """Texts of a bank, numbered as its rows."""

    def __init__(self, path: Path, sentences: int) -> None:
        """``sentences``: of each row, 1 or 2."""
        arrays = map_tensors(path)
        self._bytes, self._offsets = arrays["bytes"], arrays["offsets"]
        self._sentences = sentences

    @staticmethod
    def write(path: Path, texts: Sequence[TextPair], sentences: int) -> None:
        """Write texts of one kind."""
        encoded = [part.encode() for text in texts for part in text[:sentences] if part is not None]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        save_tensors({"bytes": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets})(path)

    def __len__(self) -> int:
        return (len(self._offsets) - 1) // self._sentences

    @overload
    def __getitem__(self, row: int) -> TextPair: ...
    @overload
    def __getitem__(self, row: slice) -> list[TextPair]: ...
    def __getitem__(self, row: int | slice) -> TextPair | list[TextPair]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        first = row * self._sentences
        ends = self._offsets[first : first + self._sentences + 1].tolist()
        parts = [self._bytes[start:stop].tobytes().decode() for start, stop in pairwise(ends)]
        return parts[0], parts[1] if self._sentences == 2 else None

    def __iter__(self) -> Iterator[TextPair]:
        return (self[row] for row in range(len(self)))
