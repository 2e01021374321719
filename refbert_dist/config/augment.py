"""How the training rows of a task are multiplied: TinyBERT's data augmentation (arXiv 1909.10351, algorithm 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from refbert_dist.config.section import Fraction, Positive, Section


class AugmentConfig(Section):
    """Copies of each training row in which some words are replaced by others that fit there."""

    copies: Positive = 20
    """Copies drawn of each row (N_a); TinyBERT: 30 for CoLA, MRPC, RTE, STS-B, 20 for SST-2, QNLI, 10 for MNLI, QQP."""
    probability: Fraction = 0.4
    """Probability that a word of a copy is replaced, if there is a candidate for it (p_t)."""
    candidates: Literal["masked-lm", "glove", "both"] = "both"
    """Where candidates come from: a masked language model for words of one piece, GloVe for all words, or each for its
    own (the model for words of one piece, GloVe for the others). ``both`` is GloVe alone, and says so, where
    ``teacher.model`` has no masked-LM head and ``masked_lm`` is ``null``."""
    per_word: Positive = 15
    """Candidates asked for each word (K); those that are no words, or the word itself, are then left out."""
    glove: Path | None = None
    """Word vectors in GloVe's text format (a word and its numbers a line), plain or ``.gz``; the first 100,000 lines
    are read. Needed unless ``candidates`` is ``masked-lm``."""
    masked_lm: str | None = None
    """Folder, hub name or ``package:NAME`` of a masked language model; ``null`` is ``teacher.model``'s own."""

    @model_validator(mode="after")
    def _vectors_are_given(self) -> AugmentConfig:
        if self.candidates != "masked-lm" and self.glove is None:
            raise ValueError(
                f"task.augment.glove is missing, but task.augment.candidates is '{self.candidates}'; give a file of "
                "word vectors, or set task.augment.candidates=masked-lm"
            )
        return self
