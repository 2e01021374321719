"""Reading token shards."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import numpy as np

from refbert_dist.artifacts import Artifact, map_tensors
from refbert_dist.data.tables import read_table
from refbert_dist.errors import RefusedError

Text = tuple[str, str | None]
"""One text, or the two sentences of a pair."""


class TokenSet:
    """All samples of a finished token artefact, numbered from 0 over its shards; token arrays stay on disk."""

    def __init__(self, artifact: Artifact, shards: list[dict[str, np.ndarray]]) -> None:
        self.artifact = artifact
        self.fingerprint: str = artifact.manifest()["fingerprint"]
        self.shards = shards
        """Arrays of each shard, mapped."""
        self._text_files: list[Path] | None = None
        self._read: tuple[int, list[Text]] | None = None
        counts = [len(shard["documents"]) for shard in shards]
        self._first = np.cumsum([0, *counts]).tolist()
        self.lengths: np.ndarray = np.concatenate([np.diff(shard["offsets"]) for shard in shards]).astype(np.int32)
        """Tokens of each sample, special ones included, int32 ``[N]``."""
        self.documents: np.ndarray = np.concatenate([shard["documents"] for shard in shards])
        """Document number or, for a task, group of each sample, int64 ``[N]``."""
        self.labels: np.ndarray | None = None
        """Label of each sample, float32 ``[N]``; None for a corpus."""
        if "labels" in shards[0]:
            self.labels = np.concatenate([shard["labels"] for shard in shards])
        self.sources: np.ndarray | None = None
        """Of rows and their copies: the number that each row, or the row that it is a copy of, has in the part that
        they were made from, int64 ``[N]``."""
        if "sources" in shards[0]:
            self.sources = np.concatenate([shard["sources"] for shard in shards])

    @classmethod
    def open(cls, artifact: Artifact) -> TokenSet:
        """Map the shards of a finished artefact; raises :class:`RefusedError` when one is missing or cut short."""
        for damage in artifact.verify(full=False):
            raise RefusedError(f"{artifact.path} is damaged: {damage.reason}; run refbert cache repair")
        return cls(artifact, [map_tensors(path) for path in artifact.files("safetensors")])

    def __len__(self) -> int:
        return int(self._first[-1])

    def ids(self, sample: int) -> np.ndarray:
        """Token ids of a sample, int32 ``[L]``, special tokens included."""
        return self._slice("input_ids", sample)

    def types(self, sample: int) -> np.ndarray:
        """Token types of a sample, uint8 ``[L]``."""
        return self._slice("token_type_ids", sample)

    def texts(self, start: int = 0, stop: int | None = None) -> list[Text]:
        """Text of samples ``start`` to ``stop`` (exclusive): a piece of a document, or the sentences of a task row.

        Shards are read one at a time, and the last one is kept for the next call.
        """
        stop = len(self) if stop is None else stop
        texts: list[Text] = []
        while start < stop:
            shard = bisect_right(self._first, start) - 1
            first, end = self._first[shard], min(stop, self._first[shard + 1])
            texts += self._shard_texts(shard)[start - first : end - first]
            start = end
        return texts

    def _shard_texts(self, shard: int) -> list[Text]:
        if self._text_files is None:
            self._text_files = self.artifact.files("parquet")
        if self._read is None or self._read[0] != shard:
            table = read_table(self._text_files[shard])
            self._read = shard, list(zip(table["text_a"], table["text_b"], strict=True))
        return self._read[1]

    def _slice(self, name: str, sample: int) -> np.ndarray:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of a token set with {len(self)}")
        shard = bisect_right(self._first, sample) - 1
        arrays = self.shards[shard]
        place = sample - self._first[shard]
        start, stop = arrays["offsets"][place : place + 2]
        piece: np.ndarray = arrays[name][start:stop]
        return piece
