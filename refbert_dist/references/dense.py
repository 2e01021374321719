"""Dense lookup: texts are near whose mean-pooled teacher states point the same way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refbert_dist.artifacts import map_tensors, read_json, save_tensors, write_json
from refbert_dist.references.nearest import IndexKind, NearestIndex

SLACK = 16
"""Candidates beyond k that are scored again, because faiss rounds differently from batch to batch."""
RARE_TOKEN = 1e-3
"""A token that makes up this share of the pool counts half; commoner ones tell less, and count less."""

SETTINGS, VECTORS, TOKENS = "settings.json", "vectors.safetensors", "tokens.safetensors"


class TokenVectors:
    """Texts as weighted means of the teacher's token embeddings: teacher layer 0 without positions, by a table alone.

    A token that makes up the share p of the pool weighs a / (a + p) with a = 0.001 (Arora, Liang and Ma, ICLR 2017).
    """

    def __init__(self, table: np.ndarray, weights: np.ndarray) -> None:
        """``table`` float16 ``[V, T]``; ``weights`` float32 ``[V]``."""
        self._table = table
        self._weights = np.asarray(weights)

    @classmethod
    def learn(cls, table: np.ndarray, pool: Iterable[np.ndarray]) -> TokenVectors:
        """``table`` holds the teacher's token embeddings ``[V, T]``, ``pool`` the token ids of each of its texts."""
        counts = np.zeros(len(table), np.int64)
        for ids in pool:
            np.add.at(counts, ids, 1)
        weights = RARE_TOKEN / (RARE_TOKEN + counts / max(1, counts.sum()))
        return cls(table.astype(np.float16), weights.astype(np.float32))

    def of(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors float32 ``[n, T]`` of texts given by their token ids."""
        vectors = np.zeros((len(texts), self._table.shape[1]), np.float32)
        for vector, ids in zip(vectors, texts, strict=True):
            weights = self._weights[ids]
            if len(ids):
                vector[:] = (weights[:, None] * self._table[ids].astype(np.float32)).sum(axis=0) / weights.sum()
        return vectors

    def save(self, folder: Path) -> None:
        """Write the table and the weights."""
        save_tensors({"table": self._table, "weights": self._weights})(folder / TOKENS)

    @classmethod
    def load(cls, folder: Path) -> TokenVectors:
        """Read what :meth:`save` wrote."""
        return cls(**map_tensors(folder / TOKENS))


class Dense:
    """An index over the vectors of a pool, numbered from 0; cosine of vectors from which the pool's mean is taken.

    Rows with equal vectors are one entry of the index: equal scores can then be ordered by number, and a graph is not
    torn by crowds of equal points. A row that points away from the query (score 0 or less) is never found.
    """

    kind = "dense"

    def __init__(
        self,
        vectors: np.ndarray,
        groups: np.ndarray,
        mean: np.ndarray,
        index_kind: IndexKind,
        tokens: TokenVectors | None,
        stored: np.ndarray | None = None,
    ) -> None:
        """Use :meth:`build` or :meth:`load`.

        ``vectors`` float16 ``[U, T]``, all different; ``groups`` int64 ``[N]`` tells which is each row's; ``stored`` is
        an index over the vectors that need not be built again.
        """
        self._vectors = vectors
        self._groups = groups
        self._mean = mean
        self._stored = stored
        self.index_kind = index_kind
        self.tokens = tokens
        """What turns token ids into vectors; None where the teacher itself is needed."""

    @cached_property
    def _index(self) -> NearestIndex:
        """Made when it is first asked, so that a bank is open at once."""
        if self._stored is None:
            return NearestIndex.build(self._vectors.astype(np.float32), self.index_kind)
        return NearestIndex.from_bytes(self._stored)

    @cached_property
    def _members(self) -> np.ndarray:
        """Rows in the order of their vectors, int64 ``[N]``."""
        return np.argsort(self._groups, kind="stable")

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where the rows of each vector begin in ``_members``, int64 ``[U + 1]``."""
        return np.concatenate([[0], np.cumsum(np.bincount(self._groups, minlength=len(self._vectors)))])

    @classmethod
    def build(cls, vectors: np.ndarray, index_kind: IndexKind, tokens: TokenVectors | None = None) -> Dense:
        """Index the pooled states of a pool, float32 ``[N, T]``."""
        mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        # The index sees what is kept, so that a shipped index finds the same.
        halves = _of_length_one(vectors - mean).astype(np.float16)
        numbers: dict[bytes, int] = {}
        groups = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in halves], np.int64)
        different = halves[np.unique(groups, return_index=True)[1]]
        return cls(different, groups, mean, index_kind, tokens)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Queries, float32 ``[n, T]``, of pooled states ``[n, T]``."""
        return _of_length_one(vectors - self._mean)

    def search(self, queries: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`refbert_dist.references.retriever.Retriever.search`; the index may miss some, see its kind."""
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.zeros((len(queries), k), np.float32)
        if not len(queries):
            return ids, scores
        asked = min(len(self._vectors), k + SLACK)
        candidates = self._index.search(np.stack(queries).astype(np.float32), asked)
        for number, (query, entries) in enumerate(zip(queries, candidates, strict=True)):
            found = entries[entries >= 0]
            # Each row by itself in one order: unlike a matrix product, whose last digits depend on its shape.
            cosines = np.einsum("ij,j->i", self._vectors[found].astype(np.float32), query)
            spans = [self._members[self._starts[entry] : self._starts[entry + 1]] for entry in found.tolist()]
            rows = np.concatenate([*spans, np.empty(0, np.int64)])
            near = np.repeat(cosines, [len(span) for span in spans])
            order = np.lexsort((rows, -near))
            order = order[near[order] > 0][:k]
            ids[number, : len(order)], scores[number, : len(order)] = rows[order], near[order]
        return ids, scores

    def save(self, folder: Path) -> None:
        """Write vectors, table and, unless it is quickly made again, faiss's own index."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"vectors": self._vectors, "groups": self._groups, "mean": self._mean}
        if self.index_kind != "flat":
            arrays["index"] = self._index.to_bytes()
        save_tensors(arrays)(folder / VECTORS)
        if self.tokens is not None:
            self.tokens.save(folder)
        write_json(folder / SETTINGS, {"index": self.index_kind, "tokens": self.tokens is not None})

    @classmethod
    def load(cls, folder: Path) -> Dense:
        """Open what :meth:`save` wrote."""
        settings = read_json(folder / SETTINGS)
        arrays: dict[str, Any] = map_tensors(folder / VECTORS)
        stored = arrays.pop("index", None)
        tokens = TokenVectors.load(folder) if settings["tokens"] else None
        return cls(**arrays, index_kind=settings["index"], tokens=tokens, stored=stored)


def _of_length_one(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their length; rows of zeros stay."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    scaled: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)[:, None]
    return scaled
