"""From documents and labelled rows to token samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refbert_dist.data.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH_CHARACTERS = 1 << 20
"""Text that is tokenised in one call; the tokenizer needs roughly 50 bytes for each character."""
BATCH_ROWS = 1024


@dataclass(frozen=True)
class Sample:
    """One model input, special tokens included, not padded."""

    ids: np.ndarray
    """int32 ``[L]``."""
    types: np.ndarray
    """uint8 ``[L]``."""
    document: int
    """Number of the document or, for a task, group of the row."""
    text_a: str
    text_b: str | None = None
    label: float | None = None


def corpus_samples(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Iterator[list[Sample]]:
    """Cut every document into consecutive samples of at most ``max_length`` tokens; yields one list a document.

    No sample begins inside a word, unless that word alone is longer than a sample.
    """
    before, after = special_tokens(tokenizer)
    room = max_length - len(before) - len(after)
    number = 0
    for batch in _batches(documents):
        encoded = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for text, encoding in zip(batch, encoded.encodings, strict=True):
            samples = []
            # Each of these properties copies the whole document.
            tokens, offsets = encoding.ids, encoding.offsets
            for start, stop in cut_at_words(encoding.word_ids, room):
                ids = np.array([*before, *tokens[start:stop], *after], np.int32)
                text_a = text[offsets[start][0] : offsets[stop - 1][1]]
                samples.append(Sample(ids, np.zeros(len(ids), np.uint8), number, text_a))
            number += 1
            yield samples


def task_samples(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Iterator[list[Sample]]:
    """Tokenise labelled rows, the longer sentence of a pair cut first; yields lists of samples in row order."""
    for start in range(0, len(examples), BATCH_ROWS):
        rows = examples[start : start + BATCH_ROWS]
        firsts = [row.text_a for row in rows]
        seconds = [row.text_b for row in rows] if rows[0].text_b is not None else None
        encoded = tokenizer(
            firsts,
            seconds,
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=True,
            verbose=False,
        )
        yield [
            Sample(np.array(ids, np.int32), np.array(types, np.uint8), row.group, row.text_a, row.text_b, row.label)
            for row, ids, types in zip(rows, encoded["input_ids"], encoded["token_type_ids"], strict=True)
        ]


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer's own template puts before and after a single text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    inner = special.index(0)
    return ids[:inner], ids[len(ids) - special[::-1].index(0) :]


def cut_at_words(words: Sequence[int | None], room: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive (start, stop) of at most ``room`` tokens; ``words`` names the word each token is part of."""
    start = 0
    while start < len(words):
        stop = min(start + room, len(words))
        if stop < len(words):
            border = stop
            while border > start and words[border] is not None and words[border] == words[border - 1]:
                border -= 1
            stop = border if border > start else stop
        yield start, stop
        start = stop


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
