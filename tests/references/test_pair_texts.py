"""The texts of pairs, by themselves."""

from pathlib import Path

import numpy as np
import pytest

from refbert_dist.artifacts import Artifact, save_tensors
from refbert_dist.data.token_set import TokenSet
from refbert_dist.references.pair_texts import PairTexts

BERT = [[101, 7, 8, 102, 9, 102], [101, 5, 102, 102], [101, 102, 6, 102], [101, 102, 102]]
ROBERTA = [[0, 7, 8, 2, 2, 9, 2], [0, 5, 2, 2, 2], [0, 2, 2, 6, 2], [0, 2, 2, 2]]
"""A pair, and three with empty texts."""


@pytest.mark.parametrize(("pairs", "first", "last"), [(BERT, 101, 102), (ROBERTA, 0, 2)])
def test_each_text_stands_by_itself_as_a_single_one_would(
    tmp_path: Path, pairs: list[list[int]], first: int, last: int
) -> None:
    arrays = {
        "input_ids": np.concatenate(pairs).astype(np.int32),
        "token_type_ids": np.ones(sum(map(len, pairs)), np.uint8),
        "offsets": np.cumsum([0, *map(len, pairs)]),
        "documents": np.arange(len(pairs)),
    }
    artifact = Artifact(tmp_path / "tokens")
    artifact.commit("shard-0", {"safetensors": save_tensors(arrays)}, {"samples": len(pairs)})
    artifact.finish(["shard-0"], {"fingerprint": "f"})
    texts = PairTexts(TokenSet.open(artifact))
    wanted = [[7, 8], [9], [5], [], [], [6], [], []]
    assert [texts.ids(sample).tolist() for sample in range(len(texts))] == [[first, *words, last] for words in wanted]
    assert texts.lengths.tolist() == [len(words) + 2 for words in wanted]
    assert all(texts.types(sample).tolist() == [0] * (len(words) + 2) for sample, words in enumerate(wanted))
