"""What every way of looking texts up has in common, and the control that looks at nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from refbert_dist.artifacts import read_json, write_json

MAX_CANDIDATES = 1000
"""A query that finds fewer than k allowed rows among this many goes without the rest."""
SETTINGS = "settings.json"


class Retriever(Protocol):
    """An index over a pool, numbered from 0. Queries come in a form of its own, made by its ``encode``."""

    kind: str
    """Value of ``references.retriever``."""

    def search(self, queries: Sequence[Any], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best rows of each query, best first, equal scores in the order of their numbers.

        Returns ids int64 ``[n, k]`` and scores float32 ``[n, k]``; missing places come last and hold -1 and score 0. A
        shorter list is the beginning of a longer one, and the other queries do not matter.
        """

    def save(self, folder: Path) -> None:
        """Write the index without pickles."""


class RandomDraw:
    """A control: rows of a pool in an order that depends on nothing but the seed and the query's own words."""

    kind = "random"

    def __init__(self, pool_size: int, seed: int) -> None:
        self.pool_size = pool_size
        self.seed = seed

    def encode(self, texts: Sequence[str]) -> list[int]:
        """A hash of each text, so that a new text is served as a held-out row was."""
        return [xxhash.xxh3_64_intdigest(text.encode()) for text in texts]

    def search(self, queries: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """``k`` different rows for each query, all with score 0."""
        # A drawing of another length is another one, so it is made long enough once and for all.
        longest = min(self.pool_size, max(k, MAX_CANDIDATES))
        ids = np.full((len(queries), k), -1, np.int64)
        for row, number in enumerate(queries):
            drawn = np.random.default_rng((self.seed, number)).choice(self.pool_size, size=longest, replace=False)
            ids[row, :longest] = drawn[:k]
        return ids, np.zeros(ids.shape, np.float32)

    def save(self, folder: Path) -> None:
        """Write the seed and the size of the pool."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS, {"pool_size": self.pool_size, "seed": self.seed})

    @classmethod
    def load(cls, folder: Path) -> RandomDraw:
        """Read what :meth:`save` wrote."""
        return cls(**read_json(folder / SETTINGS))
