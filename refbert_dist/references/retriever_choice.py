"""The retriever that an experiment asks for, and its queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refbert_dist.config import Experiment
from refbert_dist.data.tokenizer import tokenized
from refbert_dist.data.tokens import Part, TokenSet
from refbert_dist.references.bm25 import Bm25
from refbert_dist.references.dense import Dense, TokenVectors
from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import RandomDraw, Retriever
from refbert_dist.references.search import joined
from refbert_dist.references.vectors import open_vectors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encode = Callable[[range, Sequence[TextPair]], Sequence[Any]]
"""Turns consecutive samples of a part, given by number and by text, into queries."""

POOLED_AT_ONCE = 1 << 14


def pool_retriever(exp: Experiment, part: Part, tokens: TokenSet, rows: np.ndarray, texts: list[TextPair]) -> Retriever:
    """Index a pool: samples ``rows`` of ``part``, whose tokens are ``tokens``.

    Raises :class:`UserError` when faiss is needed and missing, or when BM25 has no word to go by.
    """
    kind = exp.references.retriever
    if kind == "bm25":
        return Bm25.build([joined(text) for text in texts], exp.references.stop_words)
    if kind == "random":
        return RandomDraw(len(rows), exp.seed)
    table = None
    if exp.references.dense_layer == 0:
        table = TokenVectors.learn(_token_embeddings(exp.teacher.model), (tokens.ids(row) for row in rows.tolist()))
    of = _pooled(exp, part, tokens, table)
    pooled = [of(rows[start : start + POOLED_AT_ONCE]) for start in range(0, len(rows), POOLED_AT_ONCE)]
    return Dense.build(np.concatenate(pooled), exp.references.dense_index, table)


def encoder(exp: Experiment, part: Part, tokens: TokenSet, retriever: Retriever) -> Encode:
    """What turns samples of ``part`` into queries of ``retriever``."""
    if isinstance(retriever, Dense):
        of = _pooled(exp, part, tokens, retriever.tokens)
        dense = retriever
        return lambda numbers, texts: list(dense.encode(of(np.arange(numbers.start, numbers.stop))))
    return lambda numbers, texts: encode_texts(retriever, None, texts)


def encode_texts(
    retriever: Retriever, tokenizer: PreTrainedTokenizerFast | None, texts: Sequence[TextPair]
) -> Sequence[Any]:
    """Queries of a retriever from texts alone; a dense one needs the tokenizer that its pool was read by."""
    if isinstance(retriever, Bm25 | RandomDraw):
        return retriever.encode([joined(text) for text in texts])
    assert isinstance(retriever, Dense)
    if not texts:
        return []
    return list(retriever.encode(token_vectors(retriever.tokens, tokenizer, texts)))


def token_vectors(
    tokens: TokenVectors | None, tokenizer: PreTrainedTokenizerFast | None, texts: Sequence[TextPair]
) -> np.ndarray:
    """Vectors float32 ``[n, T]`` of texts, read as a pool is."""
    if tokens is None or tokenizer is None:
        raise ValueError("dense lookup of a new text needs the tokenizer, and token vectors instead of the teacher")
    return tokens.of(tokenized(tokenizer, texts)[0])


def rebuilt(retriever: Retriever, texts: Sequence[TextPair], tokenizer: PreTrainedTokenizerFast | None) -> Retriever:
    """The same kind of index, with the same settings, over other texts; a dense one needs the tokenizer."""
    if isinstance(retriever, Bm25):
        return Bm25.build([joined(text) for text in texts], retriever.stop_words)
    if isinstance(retriever, RandomDraw):
        return RandomDraw(len(texts), retriever.seed)
    assert isinstance(retriever, Dense) and retriever.tokens is not None
    vectors = token_vectors(retriever.tokens, tokenizer, texts)
    return Dense.build(vectors, retriever.index_kind, retriever.tokens)


def load_retriever(kind: str, folder: Path) -> Retriever:
    """Open what a retriever of this kind has saved."""
    kinds: dict[str, Callable[[Path], Retriever]] = {
        "bm25": Bm25.load,
        "random": RandomDraw.load,
        "dense": Dense.load,
    }
    return kinds[kind](folder)


def _pooled(
    exp: Experiment, part: Part, tokens: TokenSet, table: TokenVectors | None
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the pooled states, float32 ``[n, T]``, of samples of a part."""
    if table is None:
        return open_vectors(exp, part)
    return lambda samples: table.of([tokens.ids(sample) for sample in samples.tolist()])


def _token_embeddings(spec: str) -> np.ndarray:
    from refbert_dist.models.teacher import Teacher

    weight = Teacher.load(spec).encoder.get_input_embeddings().weight
    embeddings: np.ndarray = weight.detach().numpy()
    return embeddings
