"""BM25 lookup over words: exact, deterministic, stored without pickles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refbert_dist.artifacts import read_json, write_json
from refbert_dist.errors import UserError

StopWords = Literal["english", "none"]

SETTINGS = "retriever.json"


class Retriever:
    """An index over the texts of a pool, numbered from 0.

    Words are runs of at least two word characters in lower case; nothing is stemmed. Scores are Lucene's variant of
    BM25 with k1 = 1.5 and b = 0.75 (arXiv 2407.03618), float32.
    """

    def __init__(self, index: Any, stop_words: StopWords) -> None:
        self._index = index
        self.stop_words = stop_words

    @classmethod
    def build(cls, texts: Sequence[str], stop_words: StopWords) -> Retriever:
        """Index a pool; raises :class:`UserError` when it has no word that could be looked up."""
        tokens = _words(texts, stop_words, as_ids=True)
        if not any(tokens.ids):
            raise UserError(
                "references.retriever is 'bm25' but no text of the pool has a word that it could find; "
                "set references.stop_words=none or references.retriever=none"
            )
        index = _bm25s().BM25()
        index.index(tokens, create_empty_token=False, show_progress=False)
        return cls(index, stop_words)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best texts of each query, best first, equal scores in the order of their numbers.

        Returns ids int64 ``[n, k]`` and scores float32 ``[n, k]``. A text without a common word is never found; missing
        places hold -1 and score 0.
        """
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.zeros((len(queries), k), np.float32)
        for row, words in enumerate(_words(queries, self.stop_words, as_ids=False)):
            known = self._index.get_tokens_ids(words)
            if known:
                best, best_scores = _top(self._index.get_scores_from_ids(known), k)
                ids[row, : len(best)] = best
                scores[row, : len(best)] = best_scores
        return ids, scores

    def save(self, folder: Path) -> None:
        """Write the index: ``.npy`` arrays and JSON."""
        self._index.save(str(folder), allow_pickle=False, show_progress=False)
        write_json(folder / SETTINGS, {"stop_words": self.stop_words})

    @classmethod
    def load(cls, folder: Path, mmap: bool = True) -> Retriever:
        """Read an index that :meth:`save` wrote; with ``mmap`` its arrays stay on disk."""
        index = _bm25s().BM25.load(str(folder), mmap=mmap, allow_pickle=False, show_progress=False)
        return cls(index, read_json(folder / SETTINGS)["stop_words"])


class RandomDraw:
    """A control: rows of a pool in an order that depends on nothing but the seed and the query's number."""

    def __init__(self, pool_size: int, seed: int) -> None:
        self.pool_size = pool_size
        self.seed = seed

    def draw(self, numbers: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """``k`` different rows for each query number: ids int64 ``[n, k]`` and scores float32 ``[n, k]``, all 0."""
        ids = np.empty((len(numbers), k), np.int64)
        for row, number in enumerate(numbers):
            ids[row] = np.random.default_rng((self.seed, number)).choice(self.pool_size, size=k, replace=False)
        return ids, np.zeros(ids.shape, np.float32)


def _bm25s() -> Any:
    import bm25s

    # It sets its own logger to DEBUG, which passes by the root logger's level into every log.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def _words(texts: Sequence[str], stop_words: StopWords, as_ids: bool) -> Any:
    stop = "english" if stop_words == "english" else None
    return _bm25s().tokenize(list(texts), stopwords=stop, return_ids=as_ids, show_progress=False)


def _top(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` highest positive scores and their places, by score and then place."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        # All ties of the k-th best score stay in, so that the cut below can go by place.
        least = np.partition(scores[found], len(found) - k)[len(found) - k]
        found = found[scores[found] >= least]
    found = found[np.lexsort((found, -scores[found]))][:k]
    return found, scores[found]
