"""The texts of pairs, by themselves."""

from pathlib import Path

import pytest
from token_sets import token_set

from refbert_dist.references.pair_texts import PairTexts

BERT = [[101, 7, 8, 102, 9, 102], [101, 5, 102, 102], [101, 102, 6, 102], [101, 102, 102]]
ROBERTA = [[0, 7, 8, 2, 2, 9, 2], [0, 5, 2, 2, 2], [0, 2, 2, 6, 2], [0, 2, 2, 2]]
"""A pair, and three with empty texts."""


@pytest.mark.parametrize(("pairs", "first", "last"), [(BERT, 101, 102), (ROBERTA, 0, 2)])
def test_each_text_stands_by_itself_as_a_single_one_would(
    tmp_path: Path, pairs: list[list[int]], first: int, last: int
) -> None:
    texts = PairTexts(token_set(tmp_path / "tokens", pairs, token_type=1))
    wanted = [[7, 8], [9], [5], [], [], [6], [], []]
    assert [texts.ids(sample).tolist() for sample in range(len(texts))] == [[first, *words, last] for words in wanted]
    assert texts.lengths.tolist() == [len(words) + 2 for words in wanted]
    assert all(texts.types(sample).tolist() == [0] * (len(words) + 2) for sample, words in enumerate(wanted))
