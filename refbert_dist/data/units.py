"""The unit of work of a preparation: a source file, written as shards and closed by a record.

Shards of file 12 are ``file-00012-00000`` and so on; ``file-00012`` is the record, a commit without data that says what
the whole file gave. A process that is killed in the middle of a file leaves shards without a record: the file is
tokenised again, and the shards that stand are kept where they hold the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from refbert_dist.artifacts import Artifact, changed_file, describe_files, save_tensors
from refbert_dist.artifacts.disk import Write
from refbert_dist.config import CorpusConfig, TaskConfig
from refbert_dist.data.corpus import Source, sources
from refbert_dist.data.samples import Samples, corpus_samples, cut_shards, task_samples
from refbert_dist.data.tables import save_table
from refbert_dist.data.tasks import Split, read_task, task_files
from refbert_dist.errors import RefusedError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DOCUMENT_BITS = 32
"""A document's number is its file's number and, in this many low bits, its number within the file."""


@dataclass(frozen=True)
class Unit:
    """What one process tokenises from end to end."""

    number: int
    files: tuple[Path, ...]
    """Local files that are read, absolute; none for hub and built-in data."""
    samples: Callable[[PreTrainedTokenizerFast], Iterable[Samples]]
    field: str
    """Dotted name of the setting that the text is given by."""

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"file-{self.number:05d}"

    def shard(self, number: int) -> str:
        """Name of one of its shards."""
        return f"{self.name}-{number:05d}"


def corpus_units(corpus: CorpusConfig) -> list[Unit]:
    """The sources of a corpus. A document's number is known without having read the files before its own."""

    def unit(number: int, source: Source) -> Unit:
        first = number << DOCUMENT_BITS
        return Unit(
            number,
            source.files,
            lambda tokenizer: corpus_samples(source.documents(), tokenizer, corpus.max_length, first),
            "corpus.path",
        )

    return [unit(number, source) for number, source in enumerate(sources(corpus))]


def task_unit(task: TaskConfig, split: Split, seed: int) -> Unit:
    """A split of a task, in one piece: rows are grouped over the whole of it."""

    def samples(tokenizer: PreTrainedTokenizerFast) -> Iterable[Samples]:
        examples, broken = read_task(task, split, seed)
        yield replace(task_samples(examples, tokenizer, task.max_length), broken_rows=broken)

    return Unit(0, task_files(task, split), samples, f"task.{task.source(split)}")


class _Tally:
    """Counts what goes by."""

    def __init__(self) -> None:
        self.documents = self.dropped = self.broken = 0
        self.lengths = np.zeros(1, np.int64)
        """How many samples have each length, int64 ``[longest + 1]``."""
        self._last: int | None = None

    def kept(self, batches: Iterable[Samples], min_length: int) -> Iterator[Samples]:
        """The samples that are long enough."""
        for batch in batches:
            if not len(batch):
                continue
            numbers = np.unique(batch.documents)
            self.documents += len(numbers) - (int(numbers[0]) == self._last)
            self._last = int(numbers[-1])
            kept = batch.without_short(min_length)
            self.dropped += len(batch) - len(kept)
            self.broken += batch.broken_rows
            counts = np.bincount(kept.lengths, minlength=len(self.lengths))
            counts[: len(self.lengths)] += self.lengths
            self.lengths = counts
            yield kept


def write_unit(
    artifact: Artifact,
    unit: Unit,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_hash: str,
    min_length: int,
    shard_tokens: int,
    progress: Callable[[int], None],
) -> None:
    """Tokenise a unit into shards of at most ``shard_tokens`` tokens and commit its record.

    ``progress`` is called with the number of samples in each shard. Raises :class:`UserError` where a file cannot be
    read or changes meanwhile, :class:`RefusedError` where a shard of other text stands.
    """
    described = _describe(unit)
    tally = _Tally()
    contents = []
    for number, shard in enumerate(cut_shards(tally.kept(unit.samples(tokenizer), min_length), shard_tokens)):
        contents.append(_commit(artifact, unit.shard(number), shard))
        progress(len(shard))
    changed = changed_file(described)
    if changed:
        raise UserError(f"{unit.field}: {changed} has changed while it was read; run again when nobody writes it")
    artifact.commit(
        unit.name,
        {},
        {
            "contents": contents,
            "documents": tally.documents,
            "dropped_short": tally.dropped,
            "broken_rows": tally.broken,
            "length_counts": tally.lengths.tolist(),
            "sources": described,
            "tokenizer": tokenizer_hash,
        },
    )


def standing_record(artifact: Artifact, unit: Unit, tokenizer_hash: str) -> dict[str, Any] | None:
    """The record of a unit, None where there is none yet.

    Raises :class:`RefusedError` where it tells of another file, of what the file held before it changed, or of another
    tokenizer.
    """
    record = artifact.sidecar(unit.name)
    if record is None:
        return None
    same_files = [item["path"] for item in record["sources"]] == [str(path) for path in unit.files]
    if not same_files or changed_file(record["sources"]):
        raise _other_text(artifact)
    if record["tokenizer"] != tokenizer_hash:
        raise RefusedError(
            f"{artifact.path} holds files of an interrupted run that were made with another tokenizer; remove that "
            "folder and run again"
        )
    return record


def shards_of(unit: Unit, record: Mapping[str, Any]) -> list[str]:
    """Names of the shards that a unit's record tells of."""
    return [unit.shard(number) for number in range(len(record["contents"]))]


def reopen_damaged(artifact: Artifact, units: Iterable[Unit], tokenizer_hash: str) -> None:
    """Take back the records whose shards are not all there (one was repaired away), so that their files are redone."""
    committed = artifact.committed()
    for unit in units:
        record = standing_record(artifact, unit, tokenizer_hash)
        if record and not committed.issuperset(shards_of(unit, record)):
            artifact.discard([unit.name])


def _describe(unit: Unit) -> list[dict[str, Any]]:
    try:
        return describe_files(unit.files)
    except OSError as error:
        raise UserError(
            f"{unit.field}: {error.filename} cannot be read ({error.strerror}); check the path and its rights"
        ) from None


def _commit(artifact: Artifact, name: str, samples: Samples) -> str:
    """Write and commit one shard unless it stands; returns the content hash of its samples."""
    files, content = shard_files(samples)
    standing = artifact.sidecar(name)
    if standing is None:
        meta = {"samples": len(samples), "tokens": len(samples.ids), "content": content}
        if artifact.commit(name, files, meta):
            return content
        standing = artifact.sidecar(name)
    # Left by an interrupted start, between which and now the text may have changed; or by another process.
    if standing is None or standing["content"] != content:
        raise _other_text(artifact)
    return content


def shard_files(samples: Samples, **more: np.ndarray) -> tuple[dict[str, Write], str]:
    """The files of a token shard, as :meth:`Artifact.commit` writes them, and the content hash of its samples.

    ``more``: further arrays with a value for each sample.
    """
    arrays = {
        "input_ids": samples.ids,
        "token_type_ids": samples.types,
        "offsets": np.concatenate([[0], np.cumsum(samples.lengths)]).astype(np.int64),
        "documents": samples.documents,
        **more,
    }
    if samples.labels is not None:
        arrays["labels"] = samples.labels
    seconds: Sequence[str | None] = samples.texts_b or [None] * len(samples)
    columns = {"text_a": samples.texts_a, "text_b": seconds}
    files = {
        "safetensors": save_tensors(arrays),
        "parquet": save_table(columns, {"text_a": "string", "text_b": "string"}),
    }
    return files, _content_hash(arrays, samples)


def _content_hash(arrays: dict[str, np.ndarray], samples: Samples) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    # The borders of the texts follow from the tokens well enough.
    for texts in (samples.texts_a, samples.texts_b or ()):
        digest.update("\0".join(texts).encode())
    return digest.hexdigest()


def _other_text(artifact: Artifact) -> RefusedError:
    return RefusedError(
        f"{artifact.path} holds a shard of other text from an interrupted run; remove that folder and run again"
    )
