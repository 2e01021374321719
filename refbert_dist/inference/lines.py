"""Texts from files and pipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from refbert_dist.errors import UserError
from refbert_dist.references.guards import TextPair


def parse_lines(lines: Iterable[str]) -> Iterator[TextPair]:
    """One text a line; a tab parts the two sentences of a pair. All lines must be of the same kind."""
    columns = None
    numbered = enumerate(lines, start=1)
    while True:
        try:
            number, line = next(numbered)
        except StopIteration:
            return
        except UnicodeDecodeError:
            raise UserError("standard input is not UTF-8 text; convert it first") from None
        parts = line.rstrip("\r\n").split("\t")
        columns = columns or len(parts)
        if len(parts) > 2 or len(parts) != columns:
            raise UserError(
                f"line {number} has {len(parts)} tab-separated texts, expected {min(columns, 2)}; "
                "write one text, or two parted by a tab, on every line"
            )
        if not any(part.strip() for part in parts):
            raise UserError(f"line {number} is empty; every line needs a text")
        yield parts[0], parts[1] if len(parts) == 2 else None
