"""Token shards: text tokenised once, without padding, shared by every run that asks for the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from refbert_dist.artifacts import Artifact, WorkList, changed_file, hash_strings, recipe_key
from refbert_dist.config import AugmentConfig, CorpusConfig, Experiment, TaskConfig
from refbert_dist.data.builtin import BUILTIN_PREFIX, python_docs_fingerprint
from refbert_dist.data.corpus import no_text
from refbert_dist.data.tasks import Split, has_phrases, task_source, task_spec
from refbert_dist.data.token_set import TokenSet
from refbert_dist.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from refbert_dist.data.units import (
    Unit,
    corpus_units,
    reopen_damaged,
    shards_of,
    standing_record,
    task_unit,
    write_unit,
)
from refbert_dist.errors import RefusedError, UserError

__all__ = [
    "Part",
    "TokenSet",
    "augmented_recipe",
    "build_tokens",
    "check_sources",
    "check_tokens",
    "corpus_recipe",
    "evaluated_parts",
    "parts",
    "source_parts",
    "task_recipe",
    "tokens_artifact",
]

TOKENS_VERSION = 2
"""Raised whenever the same text would give other tokens or another layout."""
AUGMENT_VERSION = 1
"""Raised whenever the same rows would get other copies."""
SHARD_FACTOR = 8
"""Token shards are this much larger than the shards of teacher states: a token is far smaller than its states."""

Part = Literal["corpus", "augmented"] | Split
"""``augmented``: the rows of ``train``, each followed by its copies."""


def parts(exp: Experiment) -> tuple[Part, ...]:
    """The parts that an experiment has, in the order in which they are made."""
    return (*source_parts(exp), "augmented") if exp.task and exp.task.augment else source_parts(exp)


def source_parts(exp: Experiment) -> tuple[Part, ...]:
    """Those that are made from files of text."""
    corpus: tuple[Part, ...] = ("corpus",) if exp.corpus else ()
    return (*corpus, *exp.task.splits) if exp.task else corpus


def evaluated_parts(exp: Experiment) -> tuple[Split, ...]:
    """The parts of which no row is trained on, or may serve as a reference."""
    return tuple(split for split in exp.task.splits if split != "train") if exp.task else ()


def corpus_recipe(exp: Experiment) -> dict[str, Any]:
    """What the corpus tokens are made from; a local path counts in full, so that runs from other folders agree."""
    corpus = _corpus(exp)
    section = corpus.model_dump(mode="json")
    if Path(corpus.path).exists():
        section["path"] = str(Path(corpus.path).resolve())
    return {"corpus": section, **_common(exp, corpus.path)}


def task_recipe(exp: Experiment, split: Split) -> dict[str, Any]:
    """What a split's tokens are made from; the seed counts only where rows are drawn with it."""
    task = _task(exp)
    spec = task_spec(task.name)
    section: dict[str, Any] = {
        "name": task.name,
        "split": split,
        "max_length": task.max_length,
        "path": task_source(task, split),
        "max_train": task.max_train if task.source(split) == "train_file" else None,
    }
    if task.source(split) == "train_file" and task.min_words is not None:
        section["min_words"] = task.min_words
    if task.held_out:
        section["held_out"] = task.held_out
        if has_phrases(task):
            section["phrases"] = True
    if spec.builtin or section["max_train"] is not None or task.held_out:
        section["seed"] = exp.seed
    return {"task": section, **_common(exp, task.path)}


def augmented_recipe(exp: Experiment) -> dict[str, Any]:
    """What rows and copies are made from; which batches the masked language model sees changes its rounding alone."""
    augment = _augment(exp)
    section = augment.model_dump(mode="json", exclude={"glove"} if augment.candidates == "masked-lm" else set())
    if section.get("glove"):
        section["glove"] = str(Path(section["glove"]).resolve())
    if augment.candidates == "glove":
        del section["masked_lm"]
    train = tokens_artifact(exp, "train").path.name
    return {"augment": section, "train": train, "seed": exp.seed, "version": AUGMENT_VERSION}


def recipe_of(exp: Experiment, part: Part) -> dict[str, Any]:
    """What a part's tokens are made from."""
    if part == "corpus":
        return corpus_recipe(exp)
    return augmented_recipe(exp) if part == "augmented" else task_recipe(exp, part)


def tokens_artifact(exp: Experiment, part: Part) -> Artifact:
    """The folder of a part's tokens: ``cache.dir/tokens/KEY``."""
    return Artifact(exp.cache.dir / "tokens" / recipe_key("tokens", recipe_of(exp, part)))


def longest(exp: Experiment, part: Part) -> int:
    """Tokens that a sample of a part has at most."""
    return _corpus(exp).max_length if part == "corpus" else _task(exp).max_length


def build_tokens(
    exp: Experiment,
    part: Part,
    progress: Callable[[int], None] = lambda samples: None,
    share_start: Callable[[int], int] = lambda items: 0,
) -> dict[str, Any]:
    """Tokenise a source part into shards and return the manifest; a finished part is only checked.

    Any number of processes may do this at once: each takes files that nobody has, and returns when all are done. A file
    that was done by an earlier start is not read again.

    Args:
        exp: the experiment.
        part: which of its texts.
        progress: called with the number of samples that this process has made so far.
        share_start: gives the place in a list of so many files where this process begins.
    """
    artifact = tokens_artifact(exp, part)
    if artifact.complete:
        return check_tokens(exp, part)
    tokenizer = load_tokenizer(exp.teacher.model)
    tokenizer_hash = tokenizer_fingerprint(tokenizer)
    units = {unit.name: unit for unit in _units(exp, part)}
    reopen_damaged(artifact, units.values(), tokenizer_hash)
    min_length = _corpus(exp).min_length if part == "corpus" else 0
    shard_tokens = exp.cache.shard_tokens * SHARD_FACTOR
    made = 0

    def count(samples: int) -> None:
        nonlocal made
        made += samples
        progress(made)

    for name in WorkList(artifact, list(units), share_start(len(units))):
        write_unit(artifact, units[name], tokenizer, tokenizer_hash, min_length, shard_tokens, count)
    records = {unit: standing_record(artifact, unit, tokenizer_hash) for unit in units.values()}
    return _finish(exp, part, records, tokenizer_hash)


def _units(exp: Experiment, part: Part) -> list[Unit]:
    assert part != "augmented", "made from prepared rows, by refbert_dist.augment"
    return corpus_units(_corpus(exp)) if part == "corpus" else [task_unit(_task(exp), part, exp.seed)]


def _finish(
    exp: Experiment, part: Part, records: Mapping[Unit, Mapping[str, Any] | None], tokenizer_hash: str
) -> dict[str, Any]:
    """Roll up what the records of all units tell; whichever process does it writes the same."""
    artifact = tokens_artifact(exp, part)
    found = [record for record in records.values() if record is not None]
    shards = {unit: shards_of(unit, record) for unit, record in records.items() if record}
    if len(found) < len(records):
        raise RefusedError(f"{artifact.path} lost a file's record while it was made; run the command again")
    if part == "corpus" and not any(record["documents"] for record in found):
        raise no_text(_corpus(exp))
    if not any(shards.values()):
        raise UserError(
            f"corpus.min_length is {_corpus(exp).min_length}, but no sample of corpus.path={_corpus(exp).path} has so "
            "many tokens; set a smaller corpus.min_length"
        )
    lengths = [sum(counts) for counts in zip_longest(*(record["length_counts"] for record in found), fillvalue=0)]
    return artifact.finish(
        [name for unit, of_unit in shards.items() for name in (unit.name, *of_unit)],
        {
            "kind": "tokens",
            "part": part,
            "recipe": recipe_of(exp, part),
            "tokenizer": tokenizer_hash,
            "fingerprint": hash_strings(content for record in found for content in record["contents"]),
            "sources": [source for record in found for source in record["sources"]],
            "documents": sum(record["documents"] for record in found),
            "dropped_short": sum(record["dropped_short"] for record in found),
            "broken_rows": sum(record.get("broken_rows", 0) for record in found),
            "max_length": longest(exp, part),
            "max_tokens": len(lengths) - 1,
            "length_counts": lengths,
        },
    )


def check_sources(exp: Experiment, part: Part) -> dict[str, Any]:
    """The manifest of a finished part, whose source files are still what they were.

    Raises :class:`UserError` naming the first file that changed.
    """
    artifact = tokens_artifact(exp, part)
    manifest = artifact.manifest()
    changed = changed_file(manifest["sources"])
    if changed:
        raise UserError(
            f"{changed} has changed since its tokens were made in {artifact.path}; choose another cache.dir, or remove "
            "that folder"
        )
    return manifest


def check_tokens(exp: Experiment, part: Part) -> dict[str, Any]:
    """As :func:`check_sources`; the tokenizer of ``teacher.model`` must be the same, too."""
    manifest = check_sources(exp, part)
    if manifest["tokenizer"] != tokenizer_fingerprint(load_tokenizer(exp.teacher.model)):
        raise UserError(
            f"the tokenizer of teacher.model={exp.teacher.model} has changed since the tokens in "
            f"{tokens_artifact(exp, part).path} were made; choose another cache.dir, or remove that folder"
        )
    return manifest


def _common(exp: Experiment, source: str) -> dict[str, Any]:
    common: dict[str, Any] = {"teacher": exp.teacher.model, "version": TOKENS_VERSION}
    if source.startswith(BUILTIN_PREFIX):
        common["builtin"] = python_docs_fingerprint()
    return common


def _corpus(exp: Experiment) -> CorpusConfig:
    if exp.corpus is None:
        raise UserError("corpus is missing, but its text is asked for; add the section corpus to the experiment")
    return exp.corpus


def _augment(exp: Experiment) -> AugmentConfig:
    augment = _task(exp).augment
    if augment is None:
        raise UserError("task.augment is missing, but its copies are asked for; add the section to the experiment")
    return augment


def _task(exp: Experiment) -> TaskConfig:
    if exp.task is None:
        raise UserError("task is missing, but its rows are asked for; add the section task to the experiment")
    return exp.task
