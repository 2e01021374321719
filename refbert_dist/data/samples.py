"""From documents and labelled rows to token samples, in columns: an object a sample would cost more than its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from refbert_dist.data.tasks import Example

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

BATCH_CHARACTERS = 1 << 20
"""Text that is tokenised in one call; the tokenizer needs roughly 50 bytes for each character."""
MAX_PIECE_CHARACTERS = 1 << 22
"""A longer document is tokenised in pieces, so that memory stays bounded; no sample reaches over the end of one."""
BATCH_ROWS = 1024


@dataclass(frozen=True)
class Samples:
    """Model inputs one after the other, special tokens included, not padded."""

    lengths: np.ndarray
    """Tokens of each sample, int64 ``[N]``."""
    ids: np.ndarray
    """int32 ``[tokens]``."""
    types: np.ndarray
    """uint8 ``[tokens]``."""
    documents: np.ndarray
    """Number of each sample's document or, for a task, group of its row, int64 ``[N]``."""
    texts_a: list[str]
    texts_b: list[str] | None = None
    labels: np.ndarray | None = None
    """float32 ``[N]``."""
    broken_rows: int = 0
    """Rows of their source that are not among them, because GLUE's own file has them broken."""

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, start: int, stop: int) -> Samples:
        """Samples ``start`` to ``stop`` (exclusive)."""
        first, count = int(self.lengths[:start].sum()), int(self.lengths[start:stop].sum())
        return Samples(
            self.lengths[start:stop],
            self.ids[first : first + count],
            self.types[first : first + count],
            self.documents[start:stop],
            self.texts_a[start:stop],
            None if self.texts_b is None else self.texts_b[start:stop],
            None if self.labels is None else self.labels[start:stop],
        )

    def without_short(self, min_length: int) -> Samples:
        """Only the samples of at least ``min_length`` tokens, of a corpus."""
        kept = self.lengths >= min_length
        if kept.all():
            return self
        tokens = np.repeat(kept, self.lengths)
        texts = [text for text, keep in zip(self.texts_a, kept.tolist(), strict=True) if keep]
        return Samples(self.lengths[kept], self.ids[tokens], self.types[tokens], self.documents[kept], texts)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """All samples of ``parts`` (at least one, all with or all without second texts and labels)."""
        seconds = [part.texts_b for part in parts if part.texts_b is not None]
        labels = [part.labels for part in parts if part.labels is not None]
        return cls(
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.types for part in parts]),
            np.concatenate([part.documents for part in parts]),
            list(chain.from_iterable(part.texts_a for part in parts)),
            list(chain.from_iterable(seconds)) if seconds else None,
            np.concatenate(labels) if labels else None,
        )


def corpus_samples(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, max_length: int, first_document: int = 0
) -> Iterator[Samples]:
    """Cut every document into consecutive samples of at most ``max_length`` tokens; documents are numbered upwards.

    No sample begins inside a word, unless that word alone is longer than a sample. Holds about ``BATCH_CHARACTERS`` of
    text at a time.
    """
    template = special_tokens(tokenizer)
    # Not through the tokenizer's own call, which makes lists of everything that the backend knows of each token.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    for numbers, texts in _batches(documents, first_document):
        yield _cut(numbers, texts, backend, template, max_length)


def _cut(
    numbers: list[int], texts: list[str], backend: Tokenizer, template: tuple[list[int], list[int]], max_length: int
) -> Samples:
    """Samples of one batch. A function of its own, so that the encodings are freed before the next ones are made."""
    before, after = template
    around = len(before) + len(after)
    # One list of all ids, cut and joined as lists: quicker than an array for each sample.
    ids: list[int] = []
    lengths: list[int] = []
    owners: list[int] = []
    pieces: list[str] = []
    # Any: their methods give None for a token that is padding, of which there is none.
    encodings: list[Any] = backend.encode_batch(texts, add_special_tokens=False)
    for number, text, encoding in zip(numbers, texts, encodings, strict=True):
        tokens = encoding.ids
        for start, stop in cut_at_words(encoding.token_to_word, len(tokens), max_length - around):
            ids += before
            ids += tokens[start:stop]
            ids += after
            lengths.append(stop - start + around)
            owners.append(number)
            pieces.append(text[encoding.token_to_chars(start)[0] : encoding.token_to_chars(stop - 1)[1]])
    return Samples(
        np.array(lengths, np.int64),
        np.fromiter(ids, np.int32, len(ids)),
        np.zeros(len(ids), np.uint8),
        np.array(owners, np.int64),
        pieces,
    )


def task_samples(examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, max_length: int) -> Samples:
    """Tokenise a task's rows, the longer sentence of a pair cut first, in row order."""
    parts = []
    for start in range(0, len(examples), BATCH_ROWS):
        rows = examples[start : start + BATCH_ROWS]
        firsts = [row.text_a for row in rows]
        seconds = [row.text_b for row in rows if row.text_b is not None] or None
        labels = [row.label for row in rows if row.label is not None]
        encoded = tokenizer(
            firsts,
            seconds,
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=True,
            verbose=False,
        )
        parts.append(
            Samples(
                np.array([len(ids) for ids in encoded["input_ids"]], np.int64),
                np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32),
                np.fromiter(chain.from_iterable(encoded["token_type_ids"]), np.uint8),
                np.array([row.group for row in rows], np.int64),
                firsts,
                seconds,
                np.array(labels, np.float32) if labels else None,
            )
        )
    return Samples.joined(parts)


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer's own template puts before and after a single text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    inner = special.index(0)
    return ids[:inner], ids[len(ids) - special[::-1].index(0) :]


def cut_at_words(word_of: Callable[[int], int | None], count: int, room: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive (start, stop) of at most ``room`` of ``count`` tokens.

    ``word_of`` gives the word that a token is part of. It is asked at the cuts only.
    """
    start = 0
    while start < count:
        stop = min(start + room, count)
        if stop < count:
            border = stop
            while border > start and (word := word_of(border)) is not None and word == word_of(border - 1):
                border -= 1
            stop = border if border > start else stop
        yield start, stop
        start = stop


def cut_shards(batches: Iterable[Samples], shard_tokens: int) -> Iterator[Samples]:
    """Regroup samples, in order, into shards of as many as fit ``shard_tokens`` tokens, and of one at least."""
    shard: list[Samples] = []
    size = 0
    for batch in batches:
        ends = np.cumsum(batch.lengths)
        start = 0
        while start < len(batch):
            taken = int(ends[start - 1]) if start else 0
            stop = max(start, int(np.searchsorted(ends, taken + shard_tokens - size, side="right")))
            if stop == start and not shard:
                stop = start + 1
            if stop > start:
                shard.append(batch.part(start, stop))
                size += int(ends[stop - 1]) - taken
            if stop < len(batch):
                yield Samples.joined(shard)
                shard, size = [], 0
            start = stop
    if shard:
        yield Samples.joined(shard)


def _batches(documents: Iterable[str], first_document: int) -> Iterator[tuple[list[int], list[str]]]:
    """Pieces of documents with the documents' numbers, about ``BATCH_CHARACTERS`` at a time."""
    numbers: list[int] = []
    texts: list[str] = []
    size = 0
    for number, document in enumerate(documents, start=first_document):
        for piece in _pieces(document):
            numbers.append(number)
            texts.append(piece)
            size += len(piece)
            if size >= BATCH_CHARACTERS:
                yield numbers, texts
                numbers, texts, size = [], [], 0
    if texts:
        yield numbers, texts


def _pieces(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > MAX_PIECE_CHARACTERS:
        stop = document.rfind(" ", start + 1, start + MAX_PIECE_CHARACTERS)
        stop = stop if stop > start else start + MAX_PIECE_CHARACTERS
        yield document[start:stop]
        start = stop
    yield document[start:] if start else document
