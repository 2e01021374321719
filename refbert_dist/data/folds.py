"""Which training rows a fold's teacher is not fine-tuned on."""

from __future__ import annotations

import numpy as np

from refbert_dist.config import FOLDS, Experiment
from refbert_dist.data.tasks import document_parents, has_phrases
from refbert_dist.data.token_set import TokenSet


def row_folds(exp: Experiment, tokens: TokenSet) -> np.ndarray:
    """The fold of each training row, int64 ``[N]``.

    Rows with common sentences, or with one parent sentence, are in one fold, so that a teacher knows nothing of them
    from the others.
    """
    assert exp.task is not None
    groups = tokens.documents
    if has_phrases(exp.task):
        groups = document_parents(exp.task)[groups]
    _, numbers = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(exp.seed).permutation(int(numbers.max()) + 1)
    folds: np.ndarray = order[numbers] % FOLDS
    return folds
