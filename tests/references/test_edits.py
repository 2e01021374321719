"""Edited copies of samples."""

from pathlib import Path

import numpy as np
import pytest
from token_sets import token_set

from refbert_dist.data.token_set import TokenSet
from refbert_dist.references.edits import EditedTokens

FIRST, LAST = 101, 102
SAMPLES, WORDS = 200, 40


@pytest.fixture
def tokens(tmp_path: Path) -> TokenSet:
    """Pairs of 20 words each, no word twice; the last sample is empty."""
    words = np.arange(1000, 1000 + SAMPLES * WORDS).reshape(SAMPLES, 2, WORDS // 2)
    samples = [[FIRST, *first, LAST, *second, LAST] for first, second in words.tolist()] + [[FIRST, LAST]]
    return token_set(tmp_path / "tokens", samples)


def every(tokens: TokenSet) -> np.ndarray:
    return np.stack([tokens.ids(sample) for sample in range(SAMPLES)])


def test_a_share_of_the_words_comes_from_other_samples(tokens: TokenSet) -> None:
    edited, original = every(EditedTokens(tokens, 0.3, seed=0)), every(tokens)
    special = original < 1000
    assert (edited == original)[special].all() and (edited[~special] >= 1000).all()
    changed = edited != original
    assert abs(changed[~special].mean() - 0.3) < 0.02
    sources = (edited[changed] - 1000) // WORDS
    assert len(set(sources.tolist())) > 0.9 * SAMPLES, "drawn from the whole set"


def test_nothing_or_everything(tokens: TokenSet) -> None:
    assert (every(EditedTokens(tokens, 0.0, seed=0)) == every(tokens)).all()
    assert (every(EditedTokens(tokens, 1.0, seed=0)) != every(tokens)).sum() > 0.999 * SAMPLES * WORDS
    assert EditedTokens(tokens, 1.0, seed=0).ids(SAMPLES).tolist() == [FIRST, LAST]


def test_a_copy_is_the_same_whenever_it_is_read(tokens: TokenSet) -> None:
    one, again, other = (EditedTokens(tokens, 0.5, seed) for seed in (3, 3, 4))
    later = again.ids(7)
    assert (every(one) == every(again)).all() and (again.ids(7) == later).all()
    assert (every(one) != every(other)).mean() > 0.5
    assert (tokens.ids(7) == np.r_[FIRST, 1280:1300, LAST, 1300:1320, LAST]).all(), "the set itself is as it was"
