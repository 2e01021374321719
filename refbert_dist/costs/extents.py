"""How much text an experiment has: counted if it is prepared, else what can be known without reading it all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from refbert_dist.config import CorpusConfig, Experiment, TaskConfig
from refbert_dist.costs.lengths import Lengths
from refbert_dist.data.corpus import Source, is_remote, sources
from refbert_dist.data.hub import is_data_set
from refbert_dist.data.tasks import Example, load_task
from refbert_dist.data.tokens import Part, parts, tokens_artifact

CHARACTERS_PER_TOKEN = 4.6
"""Of English prose and a WordPiece vocabulary of 30,522; measured on 2006 Wikipedia."""
SAMPLED_CHARACTERS = 1 << 20
TEXT_PER_BYTE = {".txt": 1.0, ".jsonl": 0.95, ".gz": 2.6, ".parquet": 1.7}
"""Characters of text for each byte of a file, by its ending."""
ASSUMED_FULL = 0.93
"""Share of a corpus's samples that are full where nothing of its text can be seen; the others are half full."""
SINGLE, PAIR = 2, 3
"""Special tokens of a text and of a pair."""


@dataclass(frozen=True)
class Extent:
    """Of one part."""

    lengths: Lengths
    origin: str
    """Where the numbers come from, for people."""
    counted: bool
    files: int = 1
    """Source files: so many processes can prepare it at once."""


def extents(exp: Experiment, characters_per_token: float = CHARACTERS_PER_TOKEN) -> dict[Part, Extent]:
    """What is known of each part; a part of which nothing is known is left out."""
    found: dict[Part, Extent] = {}
    for part in parts(exp):
        artifact = tokens_artifact(exp, part)
        if artifact.complete:
            manifest = artifact.manifest()
            files = max(1, len(manifest["sources"]))
            found[part] = Extent(Lengths.counted(manifest["length_counts"]), "counted", True, files)
        elif part == "corpus":
            assert exp.corpus
            extent = _corpus(exp.corpus, characters_per_token)
            if extent:
                found[part] = extent
        elif part == "augmented":
            assert exp.task and exp.task.augment
            if "train" in found:
                rows = found["train"].lengths
                made = rows.scaled(rows.samples * (1 + exp.task.augment.copies))
                found[part] = Extent(made, "its rows and all copies", False)
        else:
            assert exp.task
            if is_data_set(exp.task, part):
                continue  # Only a library that is slow to load could read it.
            examples = load_task(exp.task, part, exp.seed)
            lengths = Lengths.of(_row_lengths(exp.task, examples, characters_per_token))
            found[part] = Extent(lengths, "its rows", False)
    return found


def sample_texts(corpus: CorpusConfig) -> list[str]:
    """The first documents, about a million characters; none of a data set that would have to be downloaded."""
    return [] if is_remote(corpus) else list(_first(sources(corpus)[0].documents()))


def _first(documents: Iterator[str]) -> Iterator[str]:
    size = 0
    for document in documents:
        yield document
        size += len(document)
        if size >= SAMPLED_CHARACTERS:
            return


def _corpus(corpus: CorpusConfig, characters_per_token: float) -> Extent | None:
    texts = sample_texts(corpus)
    found = sources(corpus)
    if texts:
        kind = Lengths.of(_document_lengths(corpus, map(len, texts), characters_per_token))
    else:
        shares = [0.0] * (corpus.max_length + 1)
        shares[corpus.max_length], shares[corpus.max_length // 2] = ASSUMED_FULL, 1 - ASSUMED_FULL
        kind = Lengths.counted(shares)
    if corpus.expected_tokens is not None:
        samples = max(1, round(corpus.expected_tokens / kind.mean))
        return Extent(kind.scaled(samples), "corpus.expected_tokens", False, len(found))
    if not texts:
        return None
    sampled = sum(map(len, texts))
    # A built-in corpus, and any other that was read to its end, is what was read.
    whole = max(sampled, _characters(found)) if sampled >= SAMPLED_CHARACTERS else sampled
    if corpus.max_documents is not None:
        whole = min(whole, round(sampled / len(texts) * corpus.max_documents))
    samples = max(1, round(kind.samples * whole / sampled))
    return Extent(kind.scaled(samples), "the size of its files", False, len(found))


def _characters(found: Iterable[Source]) -> int:
    return round(sum(_ratio(path) * path.stat().st_size for source in found for path in source.files))


def _ratio(path: Path) -> float:
    return TEXT_PER_BYTE.get(path.suffix.lower(), 1.0)


def _document_lengths(corpus: CorpusConfig, characters: Iterable[int], characters_per_token: float) -> list[int]:
    """Tokens of the samples that documents are cut into."""
    room = corpus.max_length - SINGLE
    lengths: list[int] = []
    for count in characters:
        whole, rest = divmod(max(1, round(count / characters_per_token)), room)
        lengths += [corpus.max_length] * whole
        if rest + SINGLE >= corpus.min_length:
            lengths.append(rest + SINGLE)
    return lengths or [corpus.min_length]


def _row_lengths(task: TaskConfig, rows: Iterable[Example], characters_per_token: float) -> list[int]:
    lengths = []
    for row in rows:
        text = row.text_a + (row.text_b or "")
        special = SINGLE if row.text_b is None else PAIR
        lengths.append(min(task.max_length, round(len(text) / characters_per_token) + special))
    return lengths
