"""Where a student's weights come from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from teachers import lively_teacher
from tiny import tiny_experiment
from transformers import BertConfig, BertForMaskedLM

from refbert_dist.cache.models import check_shared, general_student
from refbert_dist.config import Experiment
from refbert_dist.errors import UserError
from refbert_dist.models.start import check_start
from refbert_dist.models.teacher import Teacher
from refbert_dist.stages.students import new_classifier, new_encoder, save_folder

AS_TEACHER = ("student.init=teacher", "student.hidden=32", "student.dropout=0")
"""A student that can start as the tiny teacher (4 layers x 32, 4 heads, intermediate 64)."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tiny_experiment(folder)
    shutil.rmtree(folder / "teacher")
    lively_teacher(folder / "teacher", "bert")
    return folder


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    types = torch.zeros(2, 40, dtype=torch.long)
    types[:, 20:] = 1
    return {"input_ids": torch.randint(5, 600, (2, 40)), "token_type_ids": types}


@torch.no_grad()
def states(exp: Experiment, student: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Hidden states of the student and of its teacher."""
    batch = inputs()
    teacher = Teacher.load(exp.teacher.model)
    wanted = teacher(batch["input_ids"], None, batch["token_type_ids"], range(teacher.num_layers + 1))
    return list(student.eval()(**batch, output_hidden_states=True).hidden_states), list(wanted)


# -- the teacher -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_student_with_all_of_its_teachers_layers_is_its_teacher(tmp_path: Path, model_type: str) -> None:
    lively_teacher(tmp_path / "teacher", model_type)
    path = tmp_path / "teacher" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu", "layer_norm_eps": 1e-3}))
    values = (f"teacher.model={tmp_path / 'teacher'}", "student.layers=4", "student.intermediate=64")
    exp = tiny_experiment(tmp_path, *AS_TEACHER, *values, "task=null")
    own, wanted = states(exp, new_encoder(exp, "tinybert"))
    for mine, theirs in zip(own, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("given", "mapped"), [("uniform", (2, 4)), ("last", (3, 4)), ("[1, 3]", (1, 3))])
def test_the_mapped_layers_are_taken(root: Path, given: str, mapped: tuple[int, ...]) -> None:
    exp = tiny_experiment(root, *AS_TEACHER, "student.intermediate=64", f"distill.layer_map={given}")
    student = new_encoder(exp, "tinybert").state_dict()
    teacher = load_file(root / "teacher" / "model.safetensors")
    for level, layer in enumerate(mapped):
        taken = {name for name in student if name.startswith(f"encoder.layer.{level}.")}
        assert len(taken) == 16
        for name in taken:
            assert torch.equal(student[name], teacher[name.replace(f"layer.{level}.", f"layer.{layer - 1}.")]), name
    embeddings = {name for name in student if name.startswith("embeddings.")}
    assert len(embeddings) == 5 and all(torch.equal(student[name], teacher[name]) for name in embeddings)


def test_a_deeper_student_repeats_layers(root: Path) -> None:
    student = new_encoder(tiny_experiment(root, *AS_TEACHER, "student.layers=8"), "tinybert").state_dict()
    name = "encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(student[name.format(6)], student[name.format(7)])
    assert not torch.equal(student[name.format(5)], student[name.format(7)])


def test_feed_forward_layers_of_another_width_stay_random(root: Path) -> None:
    drawn = new_encoder(tiny_experiment(root, "student.hidden=32"), "tinybert").state_dict()
    taken = new_encoder(tiny_experiment(root, *AS_TEACHER), "tinybert").state_dict()
    same = {name.split(".", 3)[-1] for name in drawn if torch.equal(drawn[name], taken[name])}
    # 48 instead of the teacher's 64.
    assert same == {f"{part}.dense.{kind}" for part in ("intermediate", "output") for kind in ("weight", "bias")}


def test_systems_share_the_teachers_start(root: Path) -> None:
    exp = tiny_experiment(root, *AS_TEACHER)
    plain, reading = (new_encoder(exp, system).state_dict() for system in ("tinybert", "refbert"))  # type: ignore[arg-type]
    assert all(torch.equal(plain[name], reading[name]) for name in plain)
    own = reading.keys() - plain.keys()
    assert own and all("reference_" in name for name in own)


# -- another checkpoint ----------------------------------------------------------------------------------------------


def published(folder: Path, **changes: int) -> Path:
    """Of the tiny student's shape, as TinyBERT was published: with a head for masked tokens and more."""
    shape = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(8)
    BertForMaskedLM(BertConfig(**{**shape, "max_position_embeddings": 96, **changes})).save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file({**load_file(path), "fit_dense.weight": torch.zeros(32, 24)}, path)
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def from_checkpoint(root: Path, folder: Path, *overrides: str) -> Experiment:
    return tiny_experiment(root, f"student.init={folder}", *overrides)


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_a_published_checkpoint_is_the_start(root: Path, tmp_path: Path, container: str) -> None:
    folder = published(tmp_path / "tinybert")
    tensors = load_file(folder / "model.safetensors")
    if container == "bin":  # Google's container and names
        old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
        torch.save(old, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    for system in ("tinybert", "refbert"):
        student = new_encoder(from_checkpoint(root, folder), system).state_dict()  # type: ignore[arg-type]
        plain = {name for name in student if "reference_" not in name}
        assert len(plain) == 37
        assert all(torch.equal(student[name], tensors[f"bert.{name}"]) for name in plain)


def test_an_earlier_runs_classifier_is_the_start(root: Path, tmp_path: Path) -> None:
    exp = tiny_experiment(root)
    save_folder(tmp_path / "encoder", new_encoder(exp.model_copy(update={"seed": 9}), "refbert").save_pretrained, {})
    classifier = new_classifier(exp, "refbert", tmp_path / "encoder", 2)
    classifier.save_pretrained(tmp_path / "earlier")
    student = new_encoder(from_checkpoint(root, tmp_path / "earlier"), "refbert").state_dict()
    fresh = new_encoder(exp, "refbert").state_dict()
    for name, tensor in classifier.bert.state_dict().items():
        if "reference_" in name:
            assert torch.equal(student[name], fresh[name]), "what reads references is new"
        elif not name.startswith("pooler."):
            assert torch.equal(student[name], tensor)


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("student.init=teacher",),
            r"'teacher', whose hidden_size is 32, but student\.hidden is 24; set student\.hidden",
        ),
        ((*AS_TEACHER, "student.heads=8"), r"num_attention_heads is 4, but student\.heads is 8; set student\.heads=4"),
        (("student.init=./nowhere",), r"^student\.init is './nowhere', which is not a folder"),
        (("student.init=package:no_such",), r"^student\.init is .*'no_such' is not installed"),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_any_work(root: Path, overrides: tuple[str, ...], words: str) -> None:
    exp = tiny_experiment(root, *overrides)
    with pytest.raises(UserError, match=words):
        check_shared(exp)
    with pytest.raises(UserError, match=words):
        new_encoder(exp, "tinybert")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 28}, r"hidden_size is 28, but student\.hidden is 24; set student\.hidden=28"),
        ({"num_hidden_layers": 3}, r"num_hidden_layers is 3, but student\.layers is 2"),
        ({"num_attention_heads": 2}, r"num_attention_heads is 2, but student\.heads is 4"),
        ({"intermediate_size": 50}, r"intermediate_size is 50, but student\.intermediate is 48"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(
    root: Path, tmp_path: Path, changes: dict[str, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check_start(from_checkpoint(root, published(tmp_path / "other", **changes)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 50}, r"tensor embeddings\.word_embeddings\.weight is \[50, 24\], but .* \[30522, 24\]"),
        ({"max_position_embeddings": 64}, r"tensor embeddings\.position_embeddings\.weight is \[64, 24\].*\[96, 24\]"),
    ],
)
def test_a_tensor_of_another_shape_is_named(root: Path, tmp_path: Path, changes: dict[str, int], words: str) -> None:
    exp = from_checkpoint(root, published(tmp_path / "other", **changes))
    with pytest.raises(UserError, match=words):
        new_encoder(exp, "tinybert")


def test_a_tensor_that_lacks_is_named(root: Path, tmp_path: Path) -> None:
    folder = published(tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.encoder.layer.1.attention.self.key.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.attention\.self\.key\.bias is missing, but .*\[24\]"):
        new_encoder(from_checkpoint(root, folder), "tinybert")
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="holds no embeddings"):
        new_encoder(from_checkpoint(root, folder), "tinybert")


@pytest.mark.parametrize("what", ["config.json", "model.safetensors"])
def test_a_folder_that_is_not_whole_is_refused(root: Path, tmp_path: Path, what: str) -> None:
    folder = published(tmp_path / "half")
    (folder / what).unlink()
    with pytest.raises(UserError, match=r"^student\.init"):
        check_shared(from_checkpoint(root, folder))


def test_mpnet_has_no_place_in_a_bert_student(tmp_path: Path) -> None:
    lively_teacher(tmp_path / "teacher", "mpnet")
    exp = tiny_experiment(tmp_path, *AS_TEACHER, f"teacher.model={tmp_path / 'teacher'}", "task=null")
    with pytest.raises(UserError, match=r"student\.init is 'teacher', a model of type 'mpnet'.*student\.init=random"):
        check_start(exp)


# -- the key of what comes of it -------------------------------------------------------------------------------------


def test_a_start_is_known_by_its_content(root: Path, tmp_path: Path) -> None:
    folder = published(tmp_path / "one")
    shutil.copytree(folder, tmp_path / "moved")
    key = general_student(from_checkpoint(root, folder), "refbert")
    assert general_student(from_checkpoint(root, tmp_path / "moved"), "refbert") == key
    others = {
        general_student(tiny_experiment(root, "student.init=random"), "refbert"),
        general_student(tiny_experiment(root, *AS_TEACHER), "refbert"),
        general_student(tiny_experiment(root, *AS_TEACHER, "student.init=random"), "refbert"),
    }
    assert len(others) == 3 and key not in others
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    changed = general_student(from_checkpoint(root, folder), "refbert")
    assert changed != key
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert general_student(from_checkpoint(root, tmp_path / "moved"), "refbert") not in (key, changed)
