"""Nearest vectors by inner product."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import numpy as np

from refbert_dist.faiss_library import load_faiss, one_thread

IndexKind = Literal["flat", "ivf", "hnsw"]

DENSE_ASKS = ("references.retriever is 'dense'", "references.retriever=bm25")
"""What asks for faiss, and the setting that does without."""

LIST_VECTORS = 256
"""ivf: vectors for each inverted list."""
TRAINING_VECTORS = 64
"""ivf: vectors from which each list's centre is learned."""
PROBED_LISTS, PROBED_SHARE = 32, 1 / 16
"""ivf: lists that a query reads, at least, and of very many lists this share."""
GRAPH_LINKS = 32
"""hnsw: links of a vector, in each direction."""
GRAPH_EFFORT = 80
"""hnsw: candidates for the links of a new vector."""
GRAPH_SEARCH = 1024
"""hnsw: candidates of a query; more than are ever asked for, so that a wider search does not find other ones."""


class NearestIndex:
    """Vectors ``[N, T]``, float32, of length 1. How hard it searches is fixed, so a short list begins a long one."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: np.ndarray, kind: IndexKind) -> NearestIndex:
        """Index vectors; the same ones give the same index."""
        faiss = load_faiss(*DENSE_ASKS)
        count, width = vectors.shape
        index: Any
        if kind == "flat":
            index = faiss.IndexFlatIP(width)
        elif kind == "ivf":
            lists = max(1, count // LIST_VECTORS)
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.max_points_per_centroid = TRAINING_VECTORS
            index.nprobe = max(PROBED_LISTS, round(lists * PROBED_SHARE))
        else:
            index = faiss.IndexHNSWFlat(width, GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = GRAPH_EFFORT
            index.hnsw.efSearch = GRAPH_SEARCH
        # Threads insert in the order in which they happen to run, and every order makes another graph.
        with contextlib.nullcontext() if kind == "flat" else one_thread(faiss):
            if kind == "ivf":
                index.train(vectors)
            index.add(vectors)
        return cls(index)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Numbers of about the ``k`` nearest vectors of each query, int64 ``[n, k]``; -1 where there is none."""
        ids: np.ndarray = self._index.search(queries, k)[1]
        return ids

    def to_bytes(self) -> np.ndarray:
        """The index, vectors included, in faiss's own format, uint8."""
        stored: np.ndarray = load_faiss(*DENSE_ASKS).serialize_index(self._index)
        return stored

    @classmethod
    def from_bytes(cls, stored: np.ndarray) -> NearestIndex:
        """What :meth:`to_bytes` gave."""
        return cls(load_faiss(*DENSE_ASKS).deserialize_index(np.array(stored)))
