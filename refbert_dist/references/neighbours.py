"""The nearest allowed pool rows of every sample: what they are made from, where they lie, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refbert_dist.artifacts import Artifact, map_tensors, recipe_key
from refbert_dist.config import Experiment
from refbert_dist.data.tasks import has_phrases
from refbert_dist.data.tokens import Part, evaluated_parts, parts, tokens_artifact
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.faiss_library import require_faiss
from refbert_dist.references.nearest import DENSE_ASKS

NEIGHBOURS_VERSION = 2
"""Raised whenever the same samples would get other neighbours."""
PARENTS_VERSION = 1
"""Raised whenever the same rows would get other parents."""


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
    if part == "corpus":
        recipe["pool_samples"] = references.pool_samples
    else:
        evaluated = [tokens_artifact(exp, other).path.name for other in evaluated_parts(exp)]
        # Most experiments have one such part, and of these the key stays as it was.
        recipe["evaluation"] = evaluated[0] if len(evaluated) == 1 else evaluated
        # Of dev's, too, although they find the same: their manifest compares them with those of train.
        if exp.task and has_phrases(exp.task):
            recipe["parents"] = PARENTS_VERSION
    if references.retriever == "bm25":
        recipe["stop_words"] = references.stop_words
    if references.retriever == "dense":
        recipe |= {"layer": references.dense_layer, "index": references.dense_index}
    if references.retriever == "random":
        recipe["seed"] = exp.seed
    return recipe


def neighbours_artifact(exp: Experiment, part: Part) -> Artifact:
    """The folder of a part's neighbours: ``cache.dir/neighbours/KEY``."""
    return Artifact(exp.cache.dir / "neighbours" / recipe_key("neighbours", neighbours_recipe(exp, part)))


def looked_up_parts(exp: Experiment) -> tuple[Part, ...]:
    """The parts whose neighbours are read, in the order in which they are made."""
    if not exp.references.kept:
        return ()
    stages = exp.references.stages
    return tuple(part for part in parts(exp) if stages in ("both", "general" if part == "corpus" else "task"))


def pool_part(part: Part) -> Part:
    """The part that the references of ``part`` come from."""
    return "corpus" if part == "corpus" else "train"


def check_retriever(exp: Experiment) -> None:
    """Raise :class:`UserError` when what ``references.retriever`` needs is not installed."""
    if exp.references.retriever == "dense":
        require_faiss(*DENSE_ASKS)


def check_exportable(exp: Experiment) -> None:
    """Raise :class:`UserError` when an exported model could not look up its references as they were in training."""
    references = exp.references
    if references.count and references.retriever == "dense" and references.dense_layer:
        raise UserError(
            f"references.dense_layer is {references.dense_layer}, but an exported model has no teacher to run its "
            "inputs through; set references.dense_layer=0 or references.retriever=bm25"
        )


class NeighbourTable:
    """Neighbours of every sample of a token set; what is read of it is put together when it is asked for."""

    def __init__(self, shards: Sequence[dict[str, np.ndarray]], manifest: dict[str, Any], artifact: Artifact) -> None:
        self._shards = shards
        self.count: int = manifest["count"]
        """Neighbours stored for each sample."""
        self.fingerprint: str = manifest["fingerprint"]
        self.left_out: list[int] = manifest["left_out"]
        """Pool rows that no query may read, because they equal an evaluation row."""
        self.artifact = artifact

    @classmethod
    def open(cls, artifact: Artifact) -> NeighbourTable:
        """Map a finished table; raises :class:`RefusedError` when a shard is missing or cut short."""
        for damage in artifact.verify(full=False):
            raise RefusedError(f"{artifact.path} is damaged: {damage.reason}; run refbert cache repair")
        return cls([map_tensors(path) for path in artifact.files("safetensors")], artifact.manifest(), artifact)

    @property
    def ids(self) -> np.ndarray:
        """Pool rows as sample numbers of their own token set, best first, int64 ``[N, k]``; -1 where there is none."""
        return np.concatenate([shard["ids"] for shard in self._shards])

    @property
    def scores(self) -> np.ndarray:
        """float32 ``[N, k]``."""
        return np.concatenate([shard["scores"] for shard in self._shards])

    def prefix(self, k: int) -> np.ndarray:
        """The ``k`` best rows of every sample, int64 ``[N, k]``; of the others nothing is held."""
        if k > self.count:
            raise UserError(
                f"references.count is {k}, but {self.artifact.path} holds {self.count} neighbours a sample; "
                f"set references.count to at most {self.count}, or look up more with references.stored_count"
            )
        return np.concatenate([shard["ids"][:, :k] for shard in self._shards])
