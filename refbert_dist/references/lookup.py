"""Looks up the neighbours of every sample, once for every run that asks for the same.

The queries are cut into shards that any number of processes share out; each process that gets one builds the index over
the pool itself, which takes as long as a few thousand queries. Texts of queries are read shard by shard, so that only
the pool's lie in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from refbert_dist.artifacts import Artifact, WorkList, hash_strings, map_tensors, save_tensors, shard_name
from refbert_dist.config import Experiment
from refbert_dist.data.pool import pool_rows
from refbert_dist.data.tasks import document_parents, has_phrases, task_spec
from refbert_dist.data.tokens import Part, TokenSet, evaluated_parts, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.models.locate import model_folder, weights_fingerprint
from refbert_dist.references.guards import EVALUATION_TEXT, GUARDS, SOURCE, TextPair, evaluation_rows
from refbert_dist.references.informativeness import informativeness, mismatch
from refbert_dist.references.neighbours import neighbours_artifact, neighbours_recipe, pool_part
from refbert_dist.references.retriever_choice import Encode, encoder, pool_retriever
from refbert_dist.references.search import Found, GuardedSearch, Queries
from refbert_dist.references.statistics import compared, similarity, similarity_sums
from refbert_dist.references.vectors import build_vectors, needs_vectors, require_same

SHARD_QUERIES = 1 << 14
"""Queries of one shard: what an interrupted lookup has to do again, and what processes share out."""
BATCH_QUERIES = 256


def build_neighbours(
    exp: Experiment,
    part: Part,
    progress: Callable[[int], None] = lambda samples: None,
    share_start: Callable[[int], int] = lambda items: 0,
) -> dict[str, Any]:
    """Look up ``references.kept`` neighbours of every sample and return the manifest; a finished part is only checked.

    Any number of processes may do this at once: each takes shards of queries that nobody has, and returns when all are
    done.

    Args:
        exp: the experiment.
        part: whose samples are looked up.
        progress: called with the number of samples that are looked up so far, by whomever.
        share_start: gives the place in a list of so many shards where this process begins.
    """
    if exp.references.retriever == "none":
        raise UserError("references.retriever is 'none', so there is nothing to look up; set it to bm25 or random")
    artifact = neighbours_artifact(exp, part)
    lookup = _Lookup(exp, part, share_start)
    if artifact.complete:
        return require_same(artifact.manifest(), lookup.inputs, artifact)
    shards = {
        shard_name(number): range(start, min(start + SHARD_QUERIES, len(lookup.queries)))
        for number, start in enumerate(range(0, len(lookup.queries), SHARD_QUERIES))
    }
    lookup.require_enough()
    standing = artifact.committed() & shards.keys()
    for name in standing:
        require_same(artifact.sidecar(name) or {}, lookup.inputs, artifact)
    if len(standing) < len(shards):
        lookup.build_vectors()
    for name in WorkList(artifact, list(shards), share_start(len(shards))):
        done = sum(len(shards[other]) for other in artifact.committed() & shards.keys())
        found, sums = lookup.look_up(shards[name], progress, done)
        files = {"safetensors": save_tensors({"ids": found.ids, "scores": found.scores})}
        meta = {"samples": len(shards[name]), "refused": dict(found.refused), "similarity": sums, **lookup.inputs}
        artifact.commit(name, files, meta)
    progress(len(lookup.queries))
    return _finish(exp, part, artifact, list(shards), lookup)


@dataclass(frozen=True)
class _Ready:
    """What a process needs once it has a shard to look up."""

    texts: list[TextPair]
    search: GuardedSearch
    encode: Encode


class _Lookup:
    """Queries and pool of a part; the index is made when it is first needed."""

    def __init__(self, exp: Experiment, part: Part, share_start: Callable[[int], int]) -> None:
        self.exp = exp
        self.part = part
        self.queries = TokenSet.open(tokens_artifact(exp, part))
        self.is_pool = pool_part(part) == part
        self.pool = self.queries if self.is_pool else TokenSet.open(tokens_artifact(exp, pool_part(part)))
        cap = exp.references.pool_samples if part == "corpus" else len(self.pool)
        self.rows = pool_rows(len(self.pool), cap)
        """The pool's samples, int64 ``[P]``, ascending."""
        self.inputs = {"queries_fingerprint": self.queries.fingerprint, "pool_fingerprint": self.pool.fingerprint}
        if part != "corpus":
            found = [evaluated.fingerprint for evaluated in self._evaluated()]
            self.inputs["evaluation_fingerprint"] = found[0] if len(found) == 1 else hash_strings(found)
        if exp.references.retriever == "dense":
            self.inputs["teacher_fingerprint"] = weights_fingerprint(model_folder(exp.teacher.model))
        self._share_start = share_start
        self._ready: _Ready | None = None

    def require_enough(self) -> None:
        """Raise :class:`UserError` when the pool cannot have ``references.kept`` rows beside the query itself."""
        k, size = self.exp.references.kept, len(self.rows)
        if size > k:
            return
        field = "stored_count" if self.exp.references.stored_count else "count"
        if size < len(self.pool):
            raise UserError(
                f"references.pool_samples is {self.exp.references.pool_samples}, too few for references.{field}={k}; "
                f"set references.pool_samples above {k}"
            )
        raise UserError(
            f"references.{field} is {k}, but the pool that references come from ({pool_part(self.part)}) has only "
            f"{size} samples; set references.{field} below {size} or give more text"
        )

    def build_vectors(self) -> None:
        """Have the teacher's states of queries and pool ready, where they are needed."""
        if needs_vectors(self.exp):
            for part in sorted({self.part, pool_part(self.part)}):
                build_vectors(self.exp, part, self._share_start)

    @cached_property
    def left_out(self) -> list[int]:
        """Pool rows that no query may read."""
        if self.part == "corpus":
            return []
        texts = chain.from_iterable(evaluated.texts() for evaluated in self._evaluated())
        return evaluation_rows(self._pool_texts(), texts)

    def _evaluated(self) -> Iterator[TokenSet]:
        return (TokenSet.open(tokens_artifact(self.exp, part)) for part in evaluated_parts(self.exp))

    def look_up(self, numbers: range, progress: Callable[[int], None], done: int) -> tuple[Found, dict[str, float]]:
        """Neighbours of consecutive queries, as sample numbers, and the sums of their statistics.

        ``done`` queries are reported to ``progress`` beside these.
        """
        ready = self._ready = self._ready or self._prepare()
        queries = self._queries(numbers, ready.encode)
        batches = []
        for start in range(0, len(numbers), BATCH_QUERIES):
            batch = queries[start : start + BATCH_QUERIES]
            batches.append(ready.search.find(batch, self.exp.references.kept))
            progress(done + start + len(batch))
        found = Found.joined(batches)
        sums = similarity_sums(found, queries, ready.texts, compared(numbers, len(self.queries)))
        # The place after the last stands for a neighbour that is missing.
        return Found(np.append(self.rows, -1)[found.ids], found.scores, found.refused), sums

    def _prepare(self) -> _Ready:
        texts = self._pool_texts()
        retriever = pool_retriever(self.exp, pool_part(self.part), self.pool, self.rows, texts)
        search = GuardedSearch(texts, self.pool.documents[self.rows], retriever, self.left_out, self._parents())
        return _Ready(texts, search, encoder(self.exp, self.part, self.queries, retriever))

    def _parents(self) -> np.ndarray | None:
        """Of the documents, where rows are phrases of one sentence; nothing is known of those of strangers."""
        task, known = self.exp.task, self.is_pool or self.queries.sources is not None
        return document_parents(task) if self.part != "corpus" and known and task and has_phrases(task) else None

    def _pool_texts(self) -> list[TextPair]:
        runs = np.split(self.rows, np.flatnonzero(np.diff(self.rows) != 1) + 1)
        return [text for run in runs for text in self.pool.texts(int(run[0]), int(run[-1]) + 1)]

    def _queries(self, numbers: range, encode: Encode) -> Queries:
        texts = self.queries.texts(numbers.start, numbers.stop)
        own = np.arange(numbers.start, numbers.stop)
        if self.queries.sources is not None:
            own = self.queries.sources[own]
        elif not self.is_pool:
            return Queries.of_strangers(texts, encode(numbers, texts))
        places = np.searchsorted(self.rows, own)
        places[places == len(self.rows)] = 0
        rows = np.where(self.rows[places] == own, places, -1)
        return Queries(texts, encode(numbers, texts), rows, self.queries.documents[numbers.start : numbers.stop])


def _finish(exp: Experiment, part: Part, artifact: Artifact, names: list[str], lookup: _Lookup) -> dict[str, Any]:
    """Roll up what the shards tell; whichever process does it writes the same."""
    sidecars = [require_same(artifact.sidecar(name) or {}, lookup.inputs, artifact) for name in names]
    refused: Counter[str] = sum((Counter(sidecar["refused"]) for sidecar in sidecars), Counter())
    alike = similarity((sidecar["similarity"] for sidecar in sidecars), len(lookup.queries))
    # Of what was not made by augmentation there is no source to count.
    guards = GUARDS if lookup.queries.sources is None else (*GUARDS, SOURCE)
    if not alike["share_with_any"]:
        worst = max(guards, key=lambda guard: refused[guard])
        raise UserError(
            f"references.count is {exp.references.count}, but no sample of {part} has an allowed reference "
            f"({worst} refused {refused[worst]} candidates); give more or other text (in plain text a blank line ends "
            "a document), or set references.count=0"
        )
    return artifact.finish(
        names,
        {
            "kind": "neighbours",
            "part": part,
            "recipe": neighbours_recipe(exp, part),
            "count": exp.references.kept,
            "pool": len(lookup.rows),
            "fingerprint": hash_strings(sidecar["files"]["safetensors"]["xxh3"] for sidecar in sidecars),
            **lookup.inputs,
            "refused": {**{guard: refused[guard] for guard in guards}, EVALUATION_TEXT: len(lookup.left_out)},
            "left_out": lookup.left_out,
            **alike,
            **_labels(exp, artifact, names, lookup),
        },
    )


def _labels(exp: Experiment, artifact: Artifact, names: Iterable[str], lookup: _Lookup) -> dict[str, Any]:
    """What the references' labels tell; of rows to evaluate on also whether that is less than of train rows."""
    found: dict[str, Any] = {"label_agreement": None}
    if exp.task is None or lookup.queries.labels is None or lookup.pool.labels is None:
        return found
    spec = task_spec(exp.task.name)
    ids = np.concatenate([map_tensors(artifact.file(name, "safetensors"))["ids"] for name in names])
    found["label_agreement"] = informativeness(
        ids, lookup.queries.texts(), lookup.queries.labels, lookup.pool.labels, spec
    )
    if lookup.part == "dev":
        train = neighbours_artifact(exp, "train")
        found |= {"held_out": exp.task.held_out, "mismatch": None}
        if train.complete:
            of_train = train.manifest()["label_agreement"]
            found["mismatch"] = mismatch(of_train, found["label_agreement"], spec, has_phrases(exp.task))
    return found
