"""Nearest words by GloVe vectors (Pennington et al. 2014)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from refbert_dist.data.lines import numbered_lines
from refbert_dist.errors import UserError

GLOVE = "task.augment.glove"
MAX_LINES = 100_000
"""The most frequent words, as in TinyBERT's code: what comes after them is mostly names and misspellings."""
BLOCK_WORDS = 128
PLACES = 9
"""Cosines are rounded to so many: which words are compared in one product must not show in the order."""


class Glove:
    """Word vectors of length 1; words that do not consist of letters are left out."""

    def __init__(self, words: Sequence[str], vectors: np.ndarray) -> None:
        """``vectors`` float64 ``[V, D]``."""
        self.words = list(words)
        self._vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self._numbers = {word: number for number, word in reversed(list(enumerate(self.words)))}
        self._found: dict[str, list[str]] = {}

    @classmethod
    def load(cls, path: Path) -> Glove:
        """Read a file in GloVe's text format; raises :class:`UserError` naming the line that is none of it."""
        read = [(word, vector) for word, vector in word_vectors(path) if word.isalpha()]
        if not read:
            raise UserError(f"{GLOVE}: {path} holds no words; give word vectors in GloVe's text format")
        words, vectors = zip(*read, strict=True)
        return cls(words, np.stack(vectors))

    def nearest(self, words: Sequence[str], count: int) -> list[list[str]]:
        """The ``count`` words with the largest cosine to each word, best first; none for one that is not known.

        A word is known as it is written, or else in lower case.
        """
        known = [self._known(word) for word in words]
        new = sorted({word for word in known if word is not None and word not in self._found})
        for start in range(0, len(new), BLOCK_WORDS):
            block = new[start : start + BLOCK_WORDS]
            self._found.update(zip(block, self._search(block, count), strict=True))
        return [[] if word is None else self._found[word] for word in known]

    def _known(self, word: str) -> str | None:
        return next((form for form in (word, word.lower()) if form in self._numbers), None)

    def _search(self, words: Sequence[str], count: int) -> Iterator[list[str]]:
        numbers = [self._numbers[word] for word in words]
        cosines = (self._vectors[numbers] @ self._vectors.T).round(PLACES)
        cosines[np.arange(len(numbers)), numbers] = -np.inf
        count = min(count, len(self.words) - 1)
        for row in cosines:
            if not count:
                yield []
                continue
            least = np.partition(row, -count)[-count]
            places = np.flatnonzero(row >= least)
            order = places[np.argsort(-row[places], kind="stable")][:count]
            yield [self.words[place] for place in order.tolist()]


def word_vectors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each word of a file in GloVe's text format with its vector, float64 ``[D]``; see :meth:`Glove.load`."""
    width = 0
    for number, line in numbered_lines(path, GLOVE):
        if number > MAX_LINES:
            break
        # Some files have words with spaces in them: the numbers are counted from the end.
        parts = line.rsplit(" ", width) if width else line.split(" ")
        width = width or len(parts) - 1
        vector = _numbers(parts[1:])
        if not parts[0] or vector is None or len(vector) != width or width < 2:
            wanted = f"a word and {width} numbers, as line 1 has" if number > 1 else "a word and its numbers"
            raise UserError(
                f"{GLOVE}: {path} line {number} is not {wanted}, separated by single spaces; give word vectors in "
                "GloVe's text format"
            )
        yield parts[0], vector


def check_glove(path: Path) -> None:
    """Raise :class:`UserError` for a file that is not there, or whose first line is none of GloVe's text format."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(
            f"{GLOVE} is '{path}': {what}; give a file of word vectors in GloVe's text format, plain or .gz"
        )
    if next(word_vectors(path), None) is None:
        raise UserError(f"{GLOVE} is '{path}', which is empty; give word vectors in GloVe's text format")


def _numbers(parts: Sequence[str]) -> np.ndarray | None:
    try:
        # An array for each line: as lists, the vectors of a large file would take four times the room.
        found = np.array([float(part) for part in parts])
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None
