"""Writes the part ``augmented``: every training row, followed by its copies, tokenised as the rows are.

``CACHE_DIR/tokens/KEY/``: token shards of a fixed stretch of rows each, with a further array ``sources``, the number of
the row that each sample is or is a copy of. Any number of processes share the shards out; what a row's copies are
depends on the row alone, and what a shard holds on its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from refbert_dist.artifacts import Artifact, WorkList, describe_files, hash_strings, shard_name
from refbert_dist.augment.candidates import Candidates
from refbert_dist.augment.copies import copies_of
from refbert_dist.augment.glove import GLOVE, Glove
from refbert_dist.augment.sources import Sources, sources
from refbert_dist.config import AugmentConfig, Experiment
from refbert_dist.data.samples import task_samples
from refbert_dist.data.tasks import Example
from refbert_dist.data.token_set import Text
from refbert_dist.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from refbert_dist.data.tokens import TokenSet, augmented_recipe, check_tokens, tokens_artifact
from refbert_dist.data.units import shard_files
from refbert_dist.errors import UserError
from refbert_dist.models.locate import model_folder, weights_fingerprint
from refbert_dist.references.vectors import require_same

SHARD_ROWS = 512
"""Training rows of one shard: what an interrupted build has to do again, and what processes share out."""
BLOCK_ROWS = 64
"""Rows whose words a masked language model sees together, in batches of ``cache.batch_tokens``."""


def build_augmented(
    exp: Experiment,
    progress: Callable[[int], None] = lambda rows: None,
    share_start: Callable[[int], int] = lambda items: 0,
) -> dict[str, Any]:
    """Write rows and copies and return the manifest; a finished part is only checked.

    Any number of processes may do this at once; each returns when all is done.

    Args:
        exp: the experiment, with ``task.augment``.
        progress: called with the number of rows that are done so far, by whomever.
        share_start: gives the place in a list of so many shards where this process begins.
    """
    work = _Work(exp)
    artifact = tokens_artifact(exp, "augmented")
    if artifact.complete:
        return require_same(check_tokens(exp, "augmented"), work.inputs, artifact)
    shards = {
        shard_name(number): range(start, min(start + SHARD_ROWS, len(work.rows)))
        for number, start in enumerate(range(0, len(work.rows), SHARD_ROWS))
    }
    for name in artifact.committed() & shards.keys():
        require_same(artifact.sidecar(name) or {}, work.inputs, artifact)
    for name in WorkList(artifact, list(shards), share_start(len(shards))):
        done = sum(len(shards[other]) for other in artifact.committed() & shards.keys())
        _write(artifact, name, work, shards[name], lambda rows, before=done: progress(before + rows))  # type: ignore[misc]
    progress(len(work.rows))
    return _finish(exp, artifact, list(shards), work)


class _Work:
    """Training rows, and what finds words for them; the models are loaded when they are first needed."""

    def __init__(self, exp: Experiment) -> None:
        assert exp.task and exp.task.augment
        self.exp = exp
        self.config: AugmentConfig = exp.task.augment
        self.max_length = exp.task.max_length
        self.rows = TokenSet.open(tokens_artifact(exp, "train"))
        self.sources: Sources = sources(exp)
        self.tokenizer = load_tokenizer(exp.teacher.model)
        self.described = _describe(self.sources)
        masked = self.sources.masked_lm
        self.inputs: dict[str, Any] = {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "rows_fingerprint": self.rows.fingerprint,
            "glove_fingerprint": self.described[0]["xxh3"] if self.described else None,
            "masked_lm_fingerprint": weights_fingerprint(model_folder(masked, self.sources.field)) if masked else None,
        }
        self._candidates: Candidates | None = None

    def copies(self, rows: Sequence[Text]) -> Iterator[list[Text]]:
        """The copies of each of some rows."""
        self._candidates = self._candidates or self._load()
        sentences = [[sentence for sentence in row if sentence is not None] for row in rows]
        # Premises and questions come again and again.
        different = list(dict.fromkeys(chain.from_iterable(sentences)))
        slots = dict(zip(different, self._candidates.of(different), strict=True))
        for row, parts in zip(rows, sentences, strict=True):
            found = [slots[sentence] for sentence in parts]
            yield copies_of(row, found, self.config.copies, self.config.probability, self.exp.seed)

    def _load(self) -> Candidates:
        glove = Glove.load(self.sources.glove) if self.sources.glove else None
        masked = None
        if self.sources.masked_lm:
            from refbert_dist.augment.masked_words import MaskedWords
            from refbert_dist.engine.distributed import device_of
            from refbert_dist.engine.world import World

            device = device_of(World.from_environment())
            batch_tokens = self.exp.cache.batch_tokens
            masked = MaskedWords.load(self.sources.masked_lm, self.sources.field, batch_tokens, device)
        return Candidates(self.config.per_word, glove, masked)


def _describe(found: Sources) -> list[dict[str, Any]]:
    try:
        return describe_files([found.glove.resolve()] if found.glove else [])
    except OSError as error:
        raise UserError(
            f"{GLOVE}: {error.filename} cannot be read ({error.strerror}); check the path and its rights"
        ) from None


def _write(artifact: Artifact, name: str, work: _Work, numbers: range, progress: Callable[[int], None]) -> None:
    """Write and commit the rows ``numbers`` and their copies."""
    assert work.rows.labels is not None
    texts = work.rows.texts(numbers.start, numbers.stop)
    examples: list[Example] = []
    origins: list[int] = []
    for start in range(0, len(texts), BLOCK_ROWS):
        block = texts[start : start + BLOCK_ROWS]
        for place, (row, copies) in enumerate(zip(block, work.copies(block), strict=True)):
            number = numbers[start + place]
            label, group = float(work.rows.labels[number]), int(work.rows.documents[number])
            examples += [Example(*text, label, group) for text in (row, *copies)]
            origins += [number] * (1 + len(copies))
        progress(start + len(block))
    samples = task_samples(examples, work.tokenizer, work.max_length)
    files, content = shard_files(samples, sources=np.array(origins, np.int64))
    meta = {
        "samples": len(samples),
        "tokens": len(samples.ids),
        "content": content,
        "rows": len(numbers),
        "duplicates": len(numbers) * (1 + work.config.copies) - len(samples),
        "length_counts": np.bincount(samples.lengths).tolist(),
        **work.inputs,
    }
    artifact.commit(name, files, meta)


def _finish(exp: Experiment, artifact: Artifact, names: list[str], work: _Work) -> dict[str, Any]:
    """Roll up what the shards tell; whichever process does it writes the same."""
    sidecars = [require_same(artifact.sidecar(name) or {}, work.inputs, artifact) for name in names]
    lengths = [sum(counts) for counts in zip_longest(*(item["length_counts"] for item in sidecars), fillvalue=0)]
    rows, samples = len(work.rows), sum(item["samples"] for item in sidecars)
    return artifact.finish(
        names,
        {
            "kind": "tokens",
            "part": "augmented",
            "recipe": augmented_recipe(exp),
            "fingerprint": hash_strings(item["content"] for item in sidecars),
            "sources": work.described,
            "documents": len(np.unique(work.rows.documents)),
            "dropped_short": 0,
            "max_length": work.max_length,
            "max_tokens": len(lengths) - 1,
            "length_counts": lengths,
            "rows": rows,
            "copies": samples - rows,
            "duplicates": sum(item["duplicates"] for item in sidecars),
            "candidates": work.sources.names,
            "remark": work.sources.remark,
            **work.inputs,
        },
    )
