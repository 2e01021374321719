"""The one guarded lookup: it finds the neighbours of a training run and the references of a shipped model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from refbert_dist.references.guards import TextPair, refusal
from refbert_dist.references.retriever import RandomDraw, Retriever

MARGIN = 8
"""Candidates beyond k that are asked for at first."""
WIDENING = 4
"""Factor by which more candidates are asked for where guards left too few."""
MAX_CANDIDATES = 1000
"""A query that finds fewer than k allowed rows among this many goes without the rest."""


@dataclass(frozen=True)
class Found:
    """The best allowed rows of each query."""

    ids: np.ndarray
    """Pool rows, best first, int64 ``[n, k]``; -1 where there is none."""
    scores: np.ndarray
    """float32 ``[n, k]``."""
    refused: Counter[str]
    """How many candidates each guard refused before k rows were found."""


def joined(text: TextPair) -> str:
    """The text by which a row is looked up: both sentences of a pair."""
    return text[0] if text[1] is None else f"{text[0]} {text[1]}"


class GuardedSearch:
    """Lookup in a pool of texts."""

    def __init__(
        self,
        pool: Sequence[TextPair],
        documents: np.ndarray,
        retriever: Retriever | RandomDraw,
        left_out: Iterable[int] = (),
    ) -> None:
        """``documents`` int64 ``[N]`` of the pool's rows; ``left_out`` are rows that no query may read."""
        self._pool = pool
        self._documents = documents
        self._retriever = retriever
        self._left_out = frozenset(left_out)

    def inside(self, rows: Sequence[int], k: int) -> Found:
        """References of rows of the pool itself."""
        return self._find([self._pool[row] for row in rows], rows, k, inside=True)

    def outside(self, queries: Sequence[TextPair], k: int, first_number: int = 0) -> Found:
        """References of new texts; random draws depend on ``first_number``, the first one's number in its set."""
        return self._find(queries, range(first_number, first_number + len(queries)), k, inside=False)

    def _find(self, queries: Sequence[TextPair], numbers: Sequence[int], k: int, inside: bool) -> Found:
        found = Found(np.full((len(queries), k), -1, np.int64), np.zeros((len(queries), k), np.float32), Counter())
        filled = [0] * len(queries)
        limit = min(len(self._pool), max(MAX_CANDIDATES, k))
        # A random order of another length is another order, so it is drawn whole at once.
        width = limit if isinstance(self._retriever, RandomDraw) else min(k + MARGIN, limit)
        seen = 0
        pending = list(range(len(queries)))
        while pending:
            ids, scores = self._candidates(queries, numbers, pending, width)
            for place, query in enumerate(pending):
                number = numbers[query] if inside else -1
                for row, score in zip(ids[place, seen:].tolist(), scores[place, seen:].tolist(), strict=True):
                    if row < 0 or filled[query] == k:
                        break
                    if row in self._left_out:
                        continue
                    guard = refusal(
                        queries[query],
                        self._pool[row],
                        same_row=row == number,
                        query_document=int(self._documents[number]) if inside else -1,
                        row_document=int(self._documents[row]),
                    )
                    if guard:
                        found.refused[guard] += 1
                        continue
                    found.ids[query, filled[query]] = row
                    found.scores[query, filled[query]] = score
                    filled[query] += 1
            if width == limit:
                break
            pending = [query for place, query in enumerate(pending) if filled[query] < k and ids[place, -1] >= 0]
            seen, width = width, min(width * WIDENING, limit)
        return found

    def _candidates(
        self, queries: Sequence[TextPair], numbers: Sequence[int], pending: Sequence[int], width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self._retriever, RandomDraw):
            return self._retriever.draw([numbers[query] for query in pending], width)
        return self._retriever.search([joined(queries[query]) for query in pending], width)
