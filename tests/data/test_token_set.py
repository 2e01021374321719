from pathlib import Path

import numpy as np
import pytest

from refbert_dist.artifacts import Artifact, save_tensors
from refbert_dist.data.tables import save_table
from refbert_dist.data.token_set import TokenSet

COUNTS = (3, 1, 4)


@pytest.fixture
def tokens(tmp_path: Path) -> TokenSet:
    """Eight samples in three shards: sample n has the text ``text n``."""
    artifact = Artifact(tmp_path / "tokens")
    first = 0
    for number, count in enumerate(COUNTS):
        arrays = {
            "input_ids": np.arange(first, first + count, dtype=np.int32),
            "token_type_ids": np.zeros(count, np.uint8),
            "offsets": np.arange(count + 1, dtype=np.int64),
            "documents": np.arange(first, first + count),
        }
        texts = {"text_a": [f"text {first + row}" for row in range(count)], "text_b": [None] * count}
        files = {
            "safetensors": save_tensors(arrays),
            "parquet": save_table(texts, {"text_a": "string", "text_b": "string"}),
        }
        artifact.commit(f"shard-{number}", files, {"samples": count})
        first += count
    artifact.finish([f"shard-{number}" for number in range(len(COUNTS))], {"fingerprint": "f"})
    return TokenSet.open(artifact)


def test_any_stretch_of_texts_can_be_read(tokens: TokenSet) -> None:
    every = [(f"text {number}", None) for number in range(8)]
    assert tokens.texts() == every
    for start in range(9):
        for stop in range(start, 9):
            assert tokens.texts(start, stop) == every[start:stop]


def test_texts_of_one_shard_are_read_once(tokens: TokenSet) -> None:
    tokens.texts(4, 6)
    for path in tokens.artifact.files("parquet"):
        path.unlink()
    assert tokens.texts(5, 8) == [("text 5", None), ("text 6", None), ("text 7", None)]
    with pytest.raises(FileNotFoundError):
        tokens.texts(3, 5)


def test_ids_lie_where_the_lengths_say(tokens: TokenSet) -> None:
    assert [tokens.ids(sample).tolist() for sample in range(8)] == [[number] for number in range(8)]
    assert tokens.lengths.tolist() == [1] * 8
