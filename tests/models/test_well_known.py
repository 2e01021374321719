import json
from pathlib import Path

import pytest
from transformers import BertConfig

from refbert_dist.costs.work import teacher_shape
from refbert_dist.models.locate import WELL_KNOWN, teacher_info


def test_the_base_model_is_what_transformers_takes_for_its_default() -> None:
    info, config = teacher_info("bert-base-uncased"), BertConfig()
    assert info == teacher_info("google-bert/bert-base-uncased")
    assert (info.layers, info.hidden, info.heads) == (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
    )
    assert (info.intermediate, info.max_positions, info.vocab_size, info.type_vocab_size, info.pad_token_id) == (
        config.intermediate_size,
        config.max_position_embeddings,
        config.vocab_size,
        config.type_vocab_size,
        config.pad_token_id,
    )


@pytest.mark.parametrize(
    ("name", "published", "pooler"),
    [("bert-base-uncased", 109_482_240, 590_592), ("bert-large-uncased", 335_141_888, 1_049_600)],
)
def test_weights_are_as_many_as_published(name: str, published: int, pooler: int) -> None:
    assert teacher_shape(WELL_KNOWN[name]).parameters == published - pooler


def test_a_folder_of_that_name_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bert-base-uncased"
    folder.mkdir()
    config = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    config |= {"model_type": "bert", "max_position_embeddings": 128, "vocab_size": 99}
    (folder / "config.json").write_text(json.dumps(config))
    assert teacher_info("bert-base-uncased").layers == 3
