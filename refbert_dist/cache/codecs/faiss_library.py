"""The one place of the cache that knows how to get faiss, which is optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refbert_dist.errors import UserError


def require_faiss(codec: str) -> None:
    """Raise UserError when faiss is not installed; does not load it."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError(
            f"cache.codec is '{codec}', which needs faiss; run pip install 'refbert-dist[faiss]' or use "
            "cache.codec=int4"
        )


def load_faiss(codec: str) -> Any:
    """The package. It comes with an OpenMP of its own, so its threads are counted apart from torch's."""
    require_faiss(codec)
    import faiss

    return faiss


@contextmanager
def one_thread(faiss: Any) -> Iterator[None]:
    """Several threads add up in another order, which changes last bits and, over k-means' rounds, whole centroids."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
