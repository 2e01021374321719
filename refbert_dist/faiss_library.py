"""The only import of faiss, which is optional: ``pip install 'refbert-dist[faiss]'``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refbert_dist.errors import UserError


def require_faiss(setting: str, instead: str) -> None:
    """Raise UserError when faiss is not installed; does not load it.

    Args:
        setting: what asks for it, such as ``cache.codec is 'pq'``.
        instead: the setting that does without.
    """
    if importlib.util.find_spec("faiss") is None:
        raise UserError(
            f"{setting}, which needs faiss, and it is not installed; run pip install 'refbert-dist[faiss]', or set "
            f"{instead}"
        )


def load_faiss(setting: str, instead: str) -> Any:
    """The package. It comes with an OpenMP of its own, so its threads are counted apart from torch's."""
    require_faiss(setting, instead)
    import faiss

    return faiss


@contextmanager
def one_thread(faiss: Any) -> Iterator[None]:
    """Several threads add up or insert in another order, which changes last bits and, after that, whole results."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
