"""Rows that are phrases of one sentence, as SST-2's are: which rows belong together, found from their words alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+")


def parent_groups(rows: Sequence[str]) -> list[int]:
    """Number rows so that all phrases of one sentence share a number.

    A row that no other contains, word for word, is a parent (case and punctuation do not count), and a row belongs to
    the one parent that contains it. A row that lies in several, nearly always a word or two, belongs to none and stands
    for itself: it is there whichever of these sentences is not. Rows of equal words share a number in any case.

    Every span of every parent is looked up once, so it takes N x L^2 steps for N parents of L words: seconds for the
    67,349 phrases of SST-2.
    """
    words = [tuple(WORD.findall(row.lower())) or (row,) for row in rows]
    numbers = {phrase: number for number, phrase in enumerate(dict.fromkeys(words))}
    lengths = sorted({len(phrase) for phrase in numbers})
    parents: dict[tuple[str, ...], int | None] = {}
    for phrase in sorted(numbers, key=len, reverse=True):
        if phrase in parents:
            continue
        # No longer row contains it, or it would have been met as a part of that one.
        own = parents[phrase] = numbers[phrase]
        for part in _parts(phrase, lengths):
            if part in numbers:
                parents[part] = own if parents.get(part, own) == own else None
    return [numbers[phrase] if (parent := parents[phrase]) is None else parent for phrase in words]


def _parts(phrase: tuple[str, ...], lengths: Sequence[int]) -> set[tuple[str, ...]]:
    """The shorter spans of a phrase that have one of these lengths."""
    return {
        phrase[start : start + length]
        for length in lengths
        if length < len(phrase)
        for start in range(len(phrase) - length + 1)
    }
