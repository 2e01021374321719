"""The one guarded lookup: it finds the neighbours of a training run and the references of a shipped model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refbert_dist.references.guards import SOURCE, TextPair, refusal
from refbert_dist.references.retriever import MAX_CANDIDATES, Retriever

MARGIN = 24
"""Candidates beyond k that are asked for at first. A lookup costs about the same for few and for many."""
WIDENING = 6
"""Factor by which more candidates are asked for where guards left too few."""


@dataclass(frozen=True)
class Queries:
    """Texts to look up, and what is known about them."""

    texts: Sequence[TextPair]
    encoded: Sequence[Any]
    """What the retriever makes of each."""
    rows: np.ndarray
    """The pool's row that each one is, or is a copy of with some words replaced, int64 ``[n]``; -1 where it is none."""
    documents: np.ndarray
    """Document or group by the pool's numbers, int64 ``[n]``; -1 where it is not known, or none of the pool's."""

    @classmethod
    def of_strangers(cls, texts: Sequence[TextPair], encoded: Sequence[Any]) -> Queries:
        """Texts of which nothing else is known, as of every input of a shipped model."""
        unknown = np.full(len(texts), -1, np.int64)
        return cls(texts, encoded, unknown, unknown)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, part: slice) -> Queries:
        return Queries(self.texts[part], self.encoded[part], self.rows[part], self.documents[part])


@dataclass(frozen=True)
class Found:
    """The best allowed rows of each query."""

    ids: np.ndarray
    """Pool rows, best first, int64 ``[n, k]``; -1 where there is none."""
    scores: np.ndarray
    """float32 ``[n, k]``."""
    refused: Counter[str]
    """How many candidates each guard refused before k rows were found."""

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """Results of consecutive queries as one."""
        refused: Counter[str] = sum((part.refused for part in parts), Counter())
        return cls(
            np.concatenate([part.ids for part in parts]), np.concatenate([part.scores for part in parts]), refused
        )


def joined(text: TextPair) -> str:
    """The text by which a row is looked up: both sentences of a pair."""
    return text[0] if text[1] is None else f"{text[0]} {text[1]}"


class GuardedSearch:
    """Lookup in a pool of texts."""

    def __init__(
        self,
        pool: Sequence[TextPair],
        documents: np.ndarray | None,
        retriever: Retriever,
        left_out: Iterable[int] = (),
        parents: np.ndarray | None = None,
    ) -> None:
        """``documents`` int64 ``[N]`` of the pool's rows, None where they are not known.

        ``left_out`` are rows that no query may read. ``parents`` int64 ``[D]`` gives the parent sentence of each
        document, where rows are phrases.
        """
        self._pool = pool
        self._documents = None if documents is None else documents.tolist()
        self._retriever = retriever
        self._left_out = frozenset(left_out)
        self._parents = None if parents is None else parents.tolist()

    def find(self, queries: Queries, k: int) -> Found:
        """The ``k`` nearest allowed rows of each query; only those that guards leave with fewer are looked up again."""
        found = Found(np.full((len(queries), k), -1, np.int64), np.zeros((len(queries), k), np.float32), Counter())
        limit = min(len(self._pool), max(MAX_CANDIDATES, k))
        width = min(k + MARGIN, limit)
        pending = list(range(len(queries)))
        while pending:
            ids, scores = self._retriever.search([queries.encoded[query] for query in pending], width)
            again = []
            for query, candidates, best in zip(pending, ids.tolist(), scores, strict=True):
                allowed, refused = self._allowed(queries, query, candidates, k)
                if len(allowed) < k and width < limit and candidates[-1] >= 0:
                    again.append(query)
                    continue
                found.ids[query, : len(allowed)] = [candidates[place] for place in allowed]
                found.scores[query, : len(allowed)] = best[allowed]
                found.refused.update(refused)
            pending, width = again, min(width * WIDENING, limit)
        return found

    def _allowed(self, queries: Queries, query: int, candidates: Sequence[int], k: int) -> tuple[list[int], list[str]]:
        """Places of the first ``k`` allowed candidates, and the guards of those that are refused before the last."""
        text, own_row, document = queries.texts[query], int(queries.rows[query]), int(queries.documents[query])
        # A copy stands for its source: what the one must not read, the other must not, whatever its own words are.
        source = self._pool[own_row] if own_row >= 0 else text
        allowed: list[int] = []
        refused: list[str] = []
        for place, row in enumerate(candidates):
            if row < 0:
                break
            if row in self._left_out:
                continue
            row_document = -1 if self._documents is None else self._documents[row]
            guard = refusal(
                source,
                self._pool[row],
                same_row=row == own_row,
                query_document=document,
                row_document=row_document,
                same_parent=self._same_parent(document, row_document),
            )
            if text != source:
                guard = SOURCE if guard else refusal(text, self._pool[row])
            if guard:
                refused.append(guard)
                continue
            allowed.append(place)
            if len(allowed) == k:
                break
        return allowed, refused

    def _same_parent(self, document: int, other: int) -> bool:
        if self._parents is None or document < 0 or other < 0:
            return False
        return bool(self._parents[document] == self._parents[other])
