"""Token shards: text tokenised once, without padding, shared by every run that asks for the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from refbert_dist.artifacts import (
    Artifact,
    changed_file,
    describe_files,
    hash_strings,
    recipe_key,
    save_tensors,
    shard_name,
)
from refbert_dist.config import CorpusConfig, Experiment, TaskConfig
from refbert_dist.data.builtin import BUILTIN_PREFIX, python_docs_fingerprint
from refbert_dist.data.corpus import documents, source_files
from refbert_dist.data.samples import Sample, corpus_samples, task_samples
from refbert_dist.data.tables import save_table
from refbert_dist.data.tasks import Split, load_task, task_file, task_spec
from refbert_dist.data.token_set import TokenSet
from refbert_dist.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from refbert_dist.errors import RefusedError, UserError

__all__ = [
    "Part",
    "TokenSet",
    "build_tokens",
    "check_sources",
    "check_tokens",
    "corpus_recipe",
    "parts",
    "task_recipe",
    "tokens_artifact",
]

TOKENS_VERSION = 1
"""Raised whenever the same text would give other tokens or another layout."""
SHARD_FACTOR = 8
"""Token shards are this much larger than the shards of teacher states: a token is far smaller than its states."""

Part = Literal["corpus", "train", "dev"]


def parts(exp: Experiment) -> tuple[Part, ...]:
    """The parts that an experiment has, in the order in which they are made."""
    corpus: tuple[Part, ...] = ("corpus",) if exp.corpus else ()
    return (*corpus, "train", "dev") if exp.task else corpus


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
    section: dict[str, Any] = {"name": task.name, "split": split, "max_length": task.max_length, "path": task.path}
    if not spec.builtin:
        file = task.train_file if split == "train" else task.dev_file
        section["path"] = str(Path(task.path, file).resolve())
    max_train = task.max_train if split == "train" else None
    section["max_train"] = max_train
    if spec.builtin or max_train is not None:
        section["seed"] = exp.seed
    return {"task": section, **_common(exp, task.path)}


def tokens_artifact(exp: Experiment, part: Part) -> Artifact:
    """The folder of a part's tokens: ``cache.dir/tokens/KEY``."""
    recipe = corpus_recipe(exp) if part == "corpus" else task_recipe(exp, part)
    return Artifact(exp.cache.dir / "tokens" / recipe_key("tokens", recipe))


def build_tokens(exp: Experiment, part: Part, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Tokenise a part into shards and return the manifest; a finished part is only checked.

    ``progress`` is called with the number of samples made so far.
    """
    artifact = tokens_artifact(exp, part)
    if artifact.complete:
        return check_tokens(exp, part)
    recipe = corpus_recipe(exp) if part == "corpus" else task_recipe(exp, part)
    sources = describe_files(_source_files(exp, part))
    tokenizer = load_tokenizer(exp.teacher.model)
    max_length = _corpus(exp).max_length if part == "corpus" else _task(exp).max_length
    if part == "corpus":
        groups = corpus_samples(documents(_corpus(exp)), tokenizer, max_length)
        min_length = _corpus(exp).min_length
    else:
        groups = task_samples(load_task(_task(exp), part, exp.seed), tokenizer, max_length)
        min_length = 0
    shard_tokens = exp.cache.shard_tokens * SHARD_FACTOR
    shards = made = dropped = longest = size = 0
    seen: set[int] = set()
    open_shard: list[Sample] = []
    hashes: list[str] = []

    def commit() -> None:
        nonlocal shards, size
        hashes.append(_commit(artifact, shards, open_shard))
        open_shard.clear()
        shards, size = shards + 1, 0

    for group in groups:
        for sample in group:
            seen.add(sample.document)
            length = len(sample.ids)
            if length < min_length:
                dropped += 1
                continue
            if open_shard and size + length > shard_tokens:
                commit()
            open_shard.append(sample)
            size += length
            made += 1
            longest = max(longest, length)
        if progress:
            progress(made)
    if not made:
        raise UserError(
            f"corpus.min_length is {min_length}, but no sample of corpus.path={_corpus(exp).path} has so many tokens; "
            "set a smaller corpus.min_length"
        )
    commit()
    return artifact.finish(
        [shard_name(shard) for shard in range(shards)],
        {
            "kind": "tokens",
            "part": part,
            "recipe": recipe,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "fingerprint": hash_strings(hashes),
            "sources": sources,
            "documents": len(seen),
            "dropped_short": dropped,
            "max_length": max_length,
            "max_tokens": longest,
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


def _commit(artifact: Artifact, shard: int, samples: list[Sample]) -> str:
    """Write and commit one shard; returns the content hash of its arrays."""
    lengths = [len(sample.ids) for sample in samples]
    arrays = {
        "input_ids": np.concatenate([sample.ids for sample in samples]),
        "token_type_ids": np.concatenate([sample.types for sample in samples]),
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "documents": np.array([sample.document for sample in samples], np.int64),
    }
    if samples[0].label is not None:
        arrays["labels"] = np.array([sample.label for sample in samples], np.float32)
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    content = digest.hexdigest()
    firsts, seconds = [sample.text_a for sample in samples], [sample.text_b for sample in samples]
    table = save_table({"text_a": firsts, "text_b": seconds}, {"text_a": "string", "text_b": "string"})
    files = {"safetensors": save_tensors(arrays), "parquet": table}
    meta = {"samples": len(samples), "tokens": int(arrays["offsets"][-1]), "content": content}
    if not artifact.commit(shard_name(shard), files, meta):
        standing = artifact.sidecar(shard_name(shard))
        # A shard of an earlier, interrupted start; the text may have changed in between.
        if standing is None or standing["content"] != content:
            raise RefusedError(
                f"{artifact.path} holds a shard of other text from an interrupted run; remove that folder and run again"
            )
    return content


def _source_files(exp: Experiment, part: Part) -> list[Path]:
    if part == "corpus":
        return source_files(_corpus(exp))
    path = task_file(_task(exp), part)
    return [path] if path else []


def _common(exp: Experiment, source: str) -> dict[str, Any]:
    common: dict[str, Any] = {"teacher": exp.teacher.model, "version": TOKENS_VERSION}
    if source.startswith(BUILTIN_PREFIX):
        common["builtin"] = python_docs_fingerprint()
    return common


def _corpus(exp: Experiment) -> CorpusConfig:
    if exp.corpus is None:
        raise UserError("corpus is missing, but its text is asked for; add the section corpus to the experiment")
    return exp.corpus


def _task(exp: Experiment) -> TaskConfig:
    if exp.task is None:
        raise UserError("task is missing, but its rows are asked for; add the section task to the experiment")
    return exp.task
