"""Which training rows know of each other, and which a fold's teacher is not fine-tuned on."""

from __future__ import annotations

import numpy as np

from refbert_dist.config import FOLDS, Experiment
from refbert_dist.data.tasks import document_parents, has_phrases
from refbert_dist.data.token_set import TokenSet


def row_groups(exp: Experiment, tokens: TokenSet) -> np.ndarray:
    """A number of each training row, or copy of one, int64 ``[N]``.

    Rows with common sentences share it, and where rows are phrases those of one parent sentence.
    """
    assert exp.task is not None
    return document_parents(exp.task)[tokens.documents] if has_phrases(exp.task) else tokens.documents


def row_folds(exp: Experiment, tokens: TokenSet) -> np.ndarray:
    """The fold of each training row, int64 ``[N]``. A group is in one, or a teacher would know a row from others."""
    _, numbers = np.unique(row_groups(exp, tokens), return_inverse=True)
    order = np.random.default_rng(exp.seed).permutation(int(numbers.max()) + 1)
    folds: np.ndarray = order[numbers] % FOLDS
    return folds
