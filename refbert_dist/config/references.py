"""What the first layer reads beside its input: the section ``references``."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from refbert_dist.config.distill import Stage
from refbert_dist.config.section import Fraction, NonNegative, Positive, Section


class ReferencesConfig(Section):
    """What is looked up for an input, and how it is read."""

    count: NonNegative = 1
    """References the first layer reads for each input (k); 0, without a memory, is exactly TinyBERT."""
    stored_count: Positive | None = None
    """Neighbours to look up and keep, at least ``count``, so that later runs can read a prefix; ``null``: ``count``."""
    retriever: Literal["bm25", "dense", "random", "none"] = "bm25"
    """How the most similar known texts are found: common words, nearness of mean-pooled teacher states (needs faiss),
    or not at all (``random`` is a control)."""
    dense_layer: NonNegative = 0
    """Teacher layer whose states ``dense`` pools; 0, the embedding output, needs no forward pass, and is the only one
    by which an exported model can look up."""
    dense_index: Literal["flat", "ivf", "hnsw"] = "flat"
    """Faiss index of ``dense``: exact, inverted lists, or a graph."""
    pool_samples: Positive = 1_000_000
    """Samples of the corpus that serve as references in the general stage, spread evenly over it in runs."""
    states: Literal["cache", "online"] = "cache"
    """Read the references' states from the cache, or run the teacher beside the student."""
    stop_words: Literal["english", "none"] = "english"
    """Words that BM25 ignores: its default English list, or none."""
    max_length: Positive = 64
    """Tokens of a reference that are read; the rest is cut."""
    key_layer: NonNegative = 0
    """Teacher layer whose states of the reference feed the keys; 0 is the embedding output, recomputed from the ids."""
    value_layer: int = -1
    """Teacher layer whose states of the reference feed the values; -1 is the last layer."""
    tie_projections: bool = False
    """Use one teacher-to-student projection for keys and values instead of one each."""
    stages: Literal["both", "general", "task"] = "both"
    """Stages in which references are read. With ``task``, all systems share one student of the general stage."""
    label: Literal["none", "teacher", "gold"] = "none"
    """A further token for each reference of a task, with what is known of its label: the fine-tuned teacher's answer
    (probabilities, or its score), or the gold label."""
    normalize: bool = True
    """Normalise what a projection gives."""
    gate: Literal["none", "bias", "token"] = "none"
    """Learned bias on the scores of all references before the softmax: none, one for each head, or with ``token`` one
    that also depends on the reference's token."""
    gate_start: float = -6.0
    """Where the bias begins; far below 0, training starts as if there were no references."""
    memory: NonNegative = 0
    """Learned states that the first layer reads beside the references of an input, the same for all inputs; with
    ``count: 0`` alone."""
    own_edits: Fraction = 0.0
    """Share of the tokens that are exchanged for other rows' in what the control ``own`` reads. With 0 it is the input
    itself, an upper bound; with more it shows how near a text must be to be worth reading."""
    own_text: Literal["whole", "each"] = "whole"
    """What of a task's row the control ``own`` reads: all of it or, of a pair, each of its texts by itself, as it could
    be stored where texts are known before pairs of them come."""

    @model_validator(mode="after")
    def _counts_agree(self) -> ReferencesConfig:
        if self.retriever == "none" and self.count:
            raise ValueError(
                f"references.retriever is 'none' but references.count is {self.count}; set references.count=0"
            )
        if self.stored_count is not None and self.stored_count < self.count:
            raise ValueError(
                f"references.stored_count is {self.stored_count}, fewer than references.count={self.count}; "
                f"set references.stored_count to at least {self.count}"
            )
        if self.value_layer < -1:
            raise ValueError(f"references.value_layer is {self.value_layer}; use a layer number, or -1 for the last")
        if self.own_edits and self.own_text != "whole":
            raise ValueError(
                f"references.own_text is '{self.own_text}' but references.own_edits is {self.own_edits}, which edits "
                "whole inputs; set one of them"
            )
        return self

    @property
    def kept(self) -> int:
        """Neighbours stored for a sample."""
        return self.stored_count or self.count

    def own_is_input(self, stage: Stage) -> bool:
        """Whether ``own`` reads the input as it is, of which states may be stored."""
        return not self.own_edits and (self.own_text == "whole" or stage == "general")
