"""The nearest allowed pool rows of every sample, looked up once and shared by every run that asks for the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refbert_dist.artifacts import Artifact, hash_strings, map_tensors, recipe_key, save_tensors, shard_name
from refbert_dist.config import Experiment
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokens import Part, TokenSet, tokens_artifact
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.references.guards import EVALUATION_TEXT, GUARDS, TextPair, evaluation_rows
from refbert_dist.references.retriever import RandomDraw, Retriever
from refbert_dist.references.search import Found, GuardedSearch, joined
from refbert_dist.references.statistics import label_agreement, similarity

NEIGHBOURS_VERSION = 1
"""Raised whenever the same samples would get other neighbours."""
SHARD_QUERIES = 1 << 16
"""Queries of one shard: what an interrupted lookup has to do again."""
BATCH_QUERIES = 256


def neighbours_recipe(exp: Experiment, part: Part) -> dict[str, Any]:
    """What a part's neighbours depend on. Rows of a task never read evaluation text, so they depend on it, too."""
    references = exp.references
    recipe: dict[str, Any] = {
        "queries": tokens_artifact(exp, part).path.name,
        "pool": tokens_artifact(exp, pool_part(part)).path.name,
        "retriever": references.retriever,
        "kept": references.kept,
        "version": NEIGHBOURS_VERSION,
    }
    if part != "corpus":
        recipe["evaluation"] = tokens_artifact(exp, "dev").path.name
    if references.retriever == "bm25":
        recipe["stop_words"] = references.stop_words
    if references.retriever == "random":
        recipe["seed"] = exp.seed
    return recipe


def neighbours_artifact(exp: Experiment, part: Part) -> Artifact:
    """The folder of a part's neighbours: ``cache.dir/neighbours/KEY``."""
    return Artifact(exp.cache.dir / "neighbours" / recipe_key("neighbours", neighbours_recipe(exp, part)))


def pool_part(part: Part) -> Part:
    """The part that the references of ``part`` come from."""
    return "corpus" if part == "corpus" else "train"


def build_neighbours(exp: Experiment, part: Part, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Look up ``references.kept`` neighbours of every sample and return the manifest; a finished part is only checked.

    ``progress`` is called with the number of samples looked up so far.
    """
    if exp.references.retriever == "none":
        raise UserError("references.retriever is 'none', so there is nothing to look up; set it to bm25 or random")
    artifact = neighbours_artifact(exp, part)
    queries = TokenSet.open(tokens_artifact(exp, part))
    pool = queries if pool_part(part) == part else TokenSet.open(tokens_artifact(exp, pool_part(part)))
    inputs = {"queries_fingerprint": queries.fingerprint, "pool_fingerprint": pool.fingerprint}
    if part != "corpus":
        inputs["evaluation_fingerprint"] = TokenSet.open(tokens_artifact(exp, "dev")).fingerprint
    if artifact.complete:
        manifest = artifact.manifest()
        _require_same(manifest, inputs, artifact)
        return manifest
    k = exp.references.kept
    if len(pool) < k + 1:
        field = "stored_count" if exp.references.stored_count else "count"
        raise UserError(
            f"references.{field} is {k}, but the pool that references come from ({pool_part(part)}) has only "
            f"{len(pool)} samples; set references.{field} below {len(pool)} or give more text"
        )
    pool_texts = pool.texts()
    query_texts = pool_texts if queries is pool else queries.texts()
    left_out = _left_out(exp, part, pool_texts, query_texts)
    search = GuardedSearch(pool_texts, pool.documents, _retriever(exp, pool_texts), left_out)
    starts = range(0, len(queries), SHARD_QUERIES)
    for shard, start in enumerate(starts):
        rows = range(start, min(start + SHARD_QUERIES, len(queries)))
        standing = artifact.sidecar(shard_name(shard))
        if standing is None:
            found = _look_up(search, query_texts, rows, k, queries is pool, progress)
            files = {"safetensors": save_tensors({"ids": found.ids, "scores": found.scores})}
            artifact.commit(shard_name(shard), files, {"samples": len(rows), "refused": dict(found.refused), **inputs})
        else:
            _require_same(standing, inputs, artifact)
    sidecars = [sidecar for shard in range(len(starts)) if (sidecar := artifact.sidecar(shard_name(shard))) is not None]
    refused: Counter[str] = sum((Counter(sidecar["refused"]) for sidecar in sidecars), Counter())
    ids, scores = _load(artifact.path / sidecar["files"]["safetensors"]["file"] for sidecar in sidecars)
    if not (ids >= 0).any():
        worst = max(GUARDS, key=lambda guard: refused[guard])
        raise UserError(
            f"references.count is {exp.references.count}, but no sample of {part} has an allowed reference "
            f"({worst} refused {refused[worst]} candidates); give more or other text (in plain text a blank line ends "
            "a document), or set references.count=0"
        )
    agreement = None
    if exp.task is not None and queries.labels is not None and pool.labels is not None:
        regression = task_spec(exp.task.name).is_regression
        agreement = label_agreement(ids, queries.labels, pool.labels, regression, exp.seed)
    return artifact.finish(
        [shard_name(shard) for shard in range(len(starts))],
        {
            "kind": "neighbours",
            "part": part,
            "recipe": neighbours_recipe(exp, part),
            "count": k,
            "fingerprint": hash_strings(sidecar["files"]["safetensors"]["xxh3"] for sidecar in sidecars),
            **inputs,
            "refused": {**{guard: refused[guard] for guard in GUARDS}, EVALUATION_TEXT: len(left_out)},
            "left_out": left_out,
            **similarity(ids, scores, query_texts, pool_texts),
            "label_agreement": agreement,
        },
    )


def _retriever(exp: Experiment, pool_texts: Sequence[TextPair]) -> Retriever | RandomDraw:
    if exp.references.retriever == "bm25":
        return Retriever.build([joined(text) for text in pool_texts], exp.references.stop_words)
    return RandomDraw(len(pool_texts), exp.seed)


def _load(paths: Iterable[Path]) -> tuple[np.ndarray, np.ndarray]:
    shards = [map_tensors(path) for path in paths]
    return np.concatenate([shard["ids"] for shard in shards]), np.concatenate([shard["scores"] for shard in shards])


def _left_out(
    exp: Experiment, part: Part, pool_texts: Sequence[TextPair], query_texts: Sequence[TextPair]
) -> list[int]:
    if part == "corpus":
        return []
    dev = query_texts if part == "dev" else TokenSet.open(tokens_artifact(exp, "dev")).texts()
    return evaluation_rows(pool_texts, dev)


def _look_up(
    search: GuardedSearch,
    texts: Sequence[TextPair],
    rows: range,
    k: int,
    inside: bool,
    progress: Callable[[int], None] | None,
) -> Found:
    batches = []
    for start in range(rows.start, rows.stop, BATCH_QUERIES):
        stop = min(start + BATCH_QUERIES, rows.stop)
        if inside:
            batches.append(search.inside(range(start, stop), k))
        else:
            batches.append(search.outside(texts[start:stop], k, first_number=start))
        if progress:
            progress(stop)
    return Found(
        np.concatenate([batch.ids for batch in batches]),
        np.concatenate([batch.scores for batch in batches]),
        sum((batch.refused for batch in batches), Counter()),
    )


def _require_same(described: dict[str, Any], inputs: dict[str, str], artifact: Artifact) -> None:
    for name, fingerprint in inputs.items():
        if described.get(name) != fingerprint:
            raise UserError(
                f"{artifact.path} was made from other text ({name} differs); choose another cache.dir, or remove that "
                "folder"
            )


class NeighbourTable:
    """Neighbours of every sample of a token set."""

    def __init__(self, ids: np.ndarray, scores: np.ndarray, manifest: dict[str, Any], artifact: Artifact) -> None:
        self.ids = ids
        """Pool rows, best first, int64 ``[N, k]``; -1 where there is none."""
        self.scores = scores
        """float32 ``[N, k]``."""
        self.fingerprint: str = manifest["fingerprint"]
        self.left_out: list[int] = manifest["left_out"]
        """Pool rows that no query may read, because they equal an evaluation row."""
        self.artifact = artifact

    @classmethod
    def open(cls, artifact: Artifact) -> NeighbourTable:
        """Read a finished table; raises :class:`RefusedError` when a shard is missing or cut short."""
        for damage in artifact.verify(full=False):
            raise RefusedError(f"{artifact.path} is damaged: {damage.reason}; remove that folder and run again")
        return cls(*_load(artifact.files("safetensors")), artifact.manifest(), artifact)

    def prefix(self, k: int) -> np.ndarray:
        """The ``k`` best rows of every sample, int64 ``[N, k]``."""
        stored = self.ids.shape[1]
        if k > stored:
            raise UserError(
                f"references.count is {k}, but {self.artifact.path} holds {stored} neighbours a sample; "
                f"set references.count to at most {stored}, or look up more with references.stored_count"
            )
        return self.ids[:, :k]
