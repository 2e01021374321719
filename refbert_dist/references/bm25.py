"""BM25 lookup over words: exact, deterministic, in memory that is bounded and known beforehand.

The score of a row is the sum over the query's words of a number that depends on the word and the row alone, so these
numbers are computed once and kept in an inverted index. A query adds up its words' lists; nothing is skipped, because
with whole texts as queries the bounds that search engines skip by leave nearly every row in the race.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from refbert_dist.artifacts import map_tensors, read_json, save_tensors, write_json
from refbert_dist.errors import UserError

StopWords = Literal["english", "none"]
Query = tuple[np.ndarray, np.ndarray]
"""Known words of a text, int64, ascending, and how often each occurs, float32."""

K1, B = 1.5, 0.75
WORD = re.compile(r"\w\w+")
# Lucene's English list.
ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS: dict[StopWords, frozenset[str]] = {"english": frozenset(ENGLISH.split()), "none": frozenset()}

PART_ROWS = 1 << 18
"""Rows of one part of the index: bounds what is needed while it is built, and keeps a query's scores (1 MiB) in the
processor's cache."""
GROUP_ROWS = 64
POSTING_BYTES = 8
"""Memory and disk for each different word of a row."""

SETTINGS, WORDS, POSTINGS = "settings.json", "words.safetensors", "part-{:05d}.safetensors"


@dataclass(frozen=True)
class _Part:
    """Some consecutive rows of the pool."""

    rows: int
    offsets: np.ndarray
    """Where the postings of each word begin, int64 ``[V + 1]``."""
    postings: np.ndarray
    """Row within the part, int32 ``[P]``, ascending for each word."""
    scores: np.ndarray
    """float32 ``[P]``."""


@dataclass(frozen=True)
class _Vocabulary:
    """Words by their hashes, so that a stored one is ready as soon as it is mapped.

    That a word which is none of the pool's has the hash of one is less likely than a broken memory: V / 2^64.
    """

    hashes: np.ndarray
    """uint64 ``[V]``, ascending."""
    numbers: np.ndarray
    """Of the word with each hash, int64 ``[V]``."""

    @classmethod
    def of(cls, words: Sequence[str]) -> _Vocabulary:
        """Words in the order of their numbers."""
        hashes = _hashes(words)
        order = np.argsort(hashes)
        if (hashes[order][1:] == hashes[order][:-1]).any():
            raise ValueError("two words have the same hash")
        return cls(hashes[order], order)

    def known(self, words: Sequence[str]) -> np.ndarray:
        """Numbers of the words that are known, int64."""
        hashes = _hashes(words)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        found: np.ndarray = self.numbers[places[self.hashes[places] == hashes]]
        return found


def _hashes(words: Sequence[str]) -> np.ndarray:
    return np.fromiter((xxhash.xxh3_64_intdigest(word.encode()) for word in words), np.uint64, len(words))


class Bm25:
    """An index over the texts of a pool, numbered from 0.

    Words are runs of at least two word characters in lower case; nothing is stemmed. Scores are Lucene's variant of
    BM25 with k1 = 1.5 and b = 0.75 (arXiv 2407.03618). Document frequencies and the mean length are those of the whole
    pool, and a score is added up in one order, so neither the parts nor the other queries show in the result.
    """

    kind = "bm25"

    def __init__(self, words: _Vocabulary, parts: Sequence[_Part], stop_words: StopWords) -> None:
        self._words = words
        self._parts = parts
        self.stop_words = stop_words

    @classmethod
    def build(cls, texts: Sequence[str], stop_words: StopWords, part_rows: int = PART_ROWS) -> Bm25:
        """Index a pool; raises :class:`UserError` when it has no word that could be looked up."""
        words: dict[str, int] = {}
        counted = [
            _count(texts[start : start + part_rows], STOP_WORDS[stop_words], words)
            for start in range(0, len(texts), part_rows)
        ]
        if not words:
            raise UserError(
                "references.retriever is 'bm25' but no text of the pool has a word that it could find; "
                "set references.stop_words=none or references.retriever=none"
            )
        frequencies = np.zeros(len(words), np.int64)
        for part in counted:
            frequencies += np.bincount(part.words, minlength=len(words))
        weights = np.log(1 + (len(texts) - frequencies + 0.5) / (frequencies + 0.5))
        mean = sum(int(part.lengths.sum()) for part in counted) / len(texts)
        parts = []
        while counted:
            # One after the other is let go of: together they need as much as the finished index.
            parts.append(_scored(counted.pop(0), weights, mean))
        return cls(_Vocabulary.of(list(words)), parts, stop_words)

    @property
    def postings(self) -> int:
        """Entries of the index: different words of each row, summed over the rows."""
        return sum(len(part.postings) for part in self._parts)

    def encode(self, texts: Sequence[str]) -> list[Query]:
        """Queries in the form that :meth:`search` reads."""
        stop = STOP_WORDS[self.stop_words]
        queries = []
        for text in texts:
            found = self._words.known([word for word in WORD.findall(text.lower()) if word not in stop])
            words, counts = np.unique(found, return_counts=True)
            queries.append((words, counts.astype(np.float32)))
        return queries

    def visited(self, query: Query) -> int:
        """Postings that a query reads: what it costs."""
        return sum(int((part.offsets[query[0] + 1] - part.offsets[query[0]]).sum()) for part in self._parts)

    def search(self, queries: Sequence[Query], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best texts of each query, best first, equal scores in the order of their numbers.

        Returns ids int64 ``[n, k]`` and scores float32 ``[n, k]``. A text without a common word is never found; missing
        places hold -1 and score 0.
        """
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.zeros((len(queries), k), np.float32)
        buffer = np.empty(max(part.rows for part in self._parts), np.float32)
        for number, query in enumerate(queries):
            best, best_scores = self._best(query, k, buffer)
            ids[number, : len(best)] = best
            scores[number, : len(best)] = best_scores
        return ids, scores

    def _best(self, query: Query, k: int, buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        first_row = 0
        for part in self._parts:
            totals = _totals(part, query, buffer)
            # The k best so far say what a row of this part must reach.
            least = scores.min() if len(scores) == k else np.float32(0)
            found = _top(totals, k, least)
            ids = np.concatenate([ids, found + first_row])
            scores = np.concatenate([scores, totals[found]])
            order = np.lexsort((ids, -scores))[:k]
            ids, scores = ids[order], scores[order]
            first_row += part.rows
        return ids, scores

    def save(self, folder: Path) -> None:
        """Write the index: safetensors and JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(self._parts):
            arrays = {"offsets": part.offsets, "postings": part.postings, "scores": part.scores}
            save_tensors(arrays)(folder / POSTINGS.format(number))
        save_tensors(vars(self._words))(folder / WORDS)
        write_json(folder / SETTINGS, {"stop_words": self.stop_words, "rows": [part.rows for part in self._parts]})

    @classmethod
    def load(cls, folder: Path) -> Bm25:
        """Map an index that :meth:`save` wrote; its lists stay on disk until they are read."""
        settings = read_json(folder / SETTINGS)
        parts = [
            _Part(rows, **map_tensors(folder / POSTINGS.format(number))) for number, rows in enumerate(settings["rows"])
        ]
        return cls(_Vocabulary(**map_tensors(folder / WORDS)), parts, settings["stop_words"])


@dataclass(frozen=True)
class _Counted:
    """Words of some rows: for each pair of word and row that occurs, ascending, how often."""

    lengths: np.ndarray
    words: np.ndarray
    rows: np.ndarray
    counts: np.ndarray


def _count(texts: Sequence[str], stop: frozenset[str], words: dict[str, int]) -> _Counted:
    """Count; new words are numbered in the order in which they come."""
    found: list[int] = []
    lengths = np.empty(len(texts), np.int64)
    for row, text in enumerate(texts):
        before = len(found)
        found.extend([words.setdefault(word, len(words)) for word in WORD.findall(text.lower()) if word not in stop])
        lengths[row] = len(found) - before
    pairs = np.array(found, np.int64) * len(texts) + np.repeat(np.arange(len(texts)), lengths)
    pairs, counts = np.unique(pairs, return_counts=True)
    numbers, rows = np.divmod(pairs, len(texts))
    return _Counted(lengths, numbers.astype(np.int32), rows.astype(np.int32), counts.astype(np.int32))


def _scored(part: _Counted, weights: np.ndarray, mean_length: float) -> _Part:
    """``weights`` are the words' inverse document frequencies, float64 ``[V]``."""
    norms = K1 * (1 - B + B * part.lengths / mean_length)
    scores = (weights[part.words] * part.counts / (part.counts + norms[part.rows])).astype(np.float32)
    offsets = np.zeros(len(weights) + 1, np.int64)
    np.cumsum(np.bincount(part.words, minlength=len(weights)), out=offsets[1:])
    return _Part(len(part.lengths), offsets, part.rows, scores)


def _totals(part: _Part, query: Query, buffer: np.ndarray) -> np.ndarray:
    """Score of every row of a part, float32 ``[rows]``, in ``buffer``."""
    totals = buffer[: part.rows]
    totals.fill(0)
    words, counts = query
    for start, stop, count in zip(
        part.offsets[words].tolist(), part.offsets[words + 1].tolist(), counts.tolist(), strict=True
    ):
        if start == stop:
            continue
        scores = part.scores[start:stop]
        # With indices of any other type, or by fancy indexing, the same takes up to twice as long.
        np.add.at(totals, part.postings[start:stop].astype(np.intp), scores if count == 1 else scores * count)
    return totals


def _top(totals: np.ndarray, k: int, least: np.float32) -> np.ndarray:
    """Places, ascending, of all positive numbers that may be among the ``k`` highest; those below ``least`` are not.

    The k-th highest maximum of any groups is a bound that k numbers reach, and takes a tenth of the time of a
    partition, which is at its slowest where most numbers are equal: here 0.
    """
    groups = len(totals) // GROUP_ROWS
    if k < groups:
        maxima = totals[: groups * GROUP_ROWS].reshape(GROUP_ROWS, groups).max(axis=0)
        least = max(least, np.partition(maxima, groups - k)[groups - k])
    return np.flatnonzero(totals >= least if least > 0 else totals > 0)
