"""Which pool rows a query must not read: pure functions, each with a name under which its refusals are counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from refbert_dist.data.phrases import WORD

TextPair = tuple[str, str | None]
"""One text, or the two sentences of a pair."""

GUARDS = ("self", "equal_text", "contains", "same_document", "same_parent")
"""The guards in the order in which they are asked; a refusal counts for the first that fires."""
SOURCE = "source"
"""Counter of the rows that an augmented copy must not read because the row that it was made from must not: that row
itself, most of all."""
EVALUATION_TEXT = "evaluation_text"
"""Counter of the pool rows that are left out for every query."""

MIN_CONTAINED_WORDS = 3
"""Shorter texts lie in many others by chance (``he left``), which tells nothing about them."""


def refusal(
    query: TextPair,
    row: TextPair,
    *,
    same_row: bool = False,
    query_document: int = -1,
    row_document: int = -1,
    same_parent: bool = False,
) -> str | None:
    """The first guard that forbids ``query`` to read ``row``, or None.

    ``same_row``: they are one row of one set; ``same_parent``: phrases of one sentence. Documents are numbers in the
    same set, -1 where unknown: at inference nothing is known about an input but its text.
    """
    if same_row:
        return "self"
    if equal_text(query, row):
        return "equal_text"
    if contains(query, row):
        return "contains"
    if same_document(query, row, query_document, row_document):
        return "same_document"
    return "same_parent" if same_parent else None


def equal_text(query: TextPair, row: TextPair) -> bool:
    """Equal apart from case and white space; the sentences of a pair in either order."""
    return text_key(query) == text_key(row)


def contains(query: TextPair, row: TextPair) -> bool:
    """One holds the other, word for word; of a pair, each sentence of one holds a sentence of the other.

    Case, white space and punctuation do not count. A contained text needs at least three words.
    """
    longer, shorter = _words_of(query), _words_of(row)
    return _holds(longer, shorter) or _holds(shorter, longer)


def same_document(query: TextPair, row: TextPair, query_document: int, row_document: int) -> bool:
    """Parts of one document, rows of one group (same premise), or pairs with a common sentence."""
    if query_document >= 0 and query_document == row_document:
        return True
    if query[1] is None or row[1] is None:
        return False
    return not set(text_key(query)).isdisjoint(text_key(row))


def evaluation_rows(pool: Sequence[TextPair], evaluation: Iterable[TextPair]) -> list[int]:
    """Pool rows whose whole text equals that of an evaluation row: they must serve nobody as a reference."""
    held = {text_key(text) for text in evaluation}
    return [number for number, text in enumerate(pool) if text_key(text) in held]


def text_key(text: TextPair) -> tuple[str, ...]:
    """Normalised sentences (lower case, white space collapsed), sorted, so that the order of a pair does not count."""
    return tuple(sorted(normalised(part) for part in text if part is not None))


@lru_cache(maxsize=1 << 16)
def normalised(text: str) -> str:
    """Lower case, white space collapsed."""
    return " ".join(text.lower().split())


@lru_cache(maxsize=1 << 16)
def _words(text: str) -> str:
    """The text's words in lower case, each between two spaces, so that a substring test is aligned to words."""
    return " " + " ".join(WORD.findall(text.lower())) + " "


def word_set(text: TextPair) -> frozenset[str]:
    """Words of a text or of both sentences of a pair, lower case."""
    return frozenset(word for part in _words_of(text) for word in part.split())


def _words_of(text: TextPair) -> list[str]:
    return [_words(part) for part in text if part is not None]


def _holds(longer: list[str], shorter: list[str]) -> bool:
    if len(longer) != len(shorter) or any(text.count(" ") <= MIN_CONTAINED_WORDS for text in shorter):
        return False
    orders = (shorter, shorter[::-1])
    return any(all(part in whole for part, whole in zip(order, longer, strict=True)) for order in orders)
