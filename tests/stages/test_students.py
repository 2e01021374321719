"""Students at their start and on disk."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_experiment

from refbert_dist.cache.models import is_saved, training_record
from refbert_dist.config import Experiment
from refbert_dist.engine.checkpoint import TrainState
from refbert_dist.models.teacher import Teacher
from refbert_dist.objectives.distill import EncoderModule, LayerPlan
from refbert_dist.stages import students
from refbert_dist.stages.students import (
    add_record,
    load_classifier,
    load_encoder,
    load_projections,
    model_folder,
    new_classifier,
    new_encoder,
    save_folder,
    save_projections,
    student_config,
)

RECORD = {"steps": 3, "samples": 36, "seconds": 1.5, "skipped": 0}
OWN = ("reference_key", "reference_value")


@pytest.fixture
def exp(tmp_path: Path) -> Experiment:
    return tiny_experiment(tmp_path)


def saved(exp: Experiment, system: Any, job: str) -> Path:
    """A folder with a trained encoder: one whose weights are not those of the start."""
    encoder = new_encoder(exp, system)
    torch.manual_seed(3)
    for parameter in encoder.parameters():
        parameter.data += torch.randn_like(parameter)
    folder = model_folder(exp, job)
    save_folder(folder, encoder.save_pretrained, RECORD)
    return folder


def differing(one: torch.nn.Module, other: torch.nn.Module) -> set[str]:
    """Names of the second's parameters that the first lacks or has otherwise."""
    known = dict(one.named_parameters())
    return {
        name for name, value in other.named_parameters() if name not in known or not torch.equal(known[name], value)
    }


# -- the start -------------------------------------------------------------------------------------------------------


def test_encoders_share_their_start(exp: Experiment) -> None:
    torch.manual_seed(99)  # what was drawn before must not matter
    plain = new_encoder(exp, "tinybert")
    reading = new_encoder(exp, "refbert")
    extra = differing(plain, reading)
    assert extra and all(any(own in name for own in OWN) for name in extra)
    assert differing(reading, plain) == set()
    assert differing(new_encoder(exp, "refbert"), reading) == set()
    other = new_encoder(exp.model_copy(update={"seed": 5}), "tinybert")
    assert "embeddings.word_embeddings.weight" in differing(plain, other)


@pytest.mark.parametrize("count", [0, 2])
def test_a_memory_comes_on_top_and_is_taken_along(tmp_path: Path, count: int) -> None:
    exp = tiny_experiment(tmp_path, f"references.count={count}", "references.memory=3")
    plain, remembering = new_encoder(exp, "tinybert"), new_encoder(exp, "refbert")
    extra = differing(plain, remembering)
    assert extra and all("memory" in name or (count and any(own in name for own in OWN)) for name in extra)
    folder = saved(exp, "refbert", "general-refbert")
    trained = load_encoder(folder)
    assert differing(trained, new_encoder(exp, "refbert", start=folder)) == set()
    assert differing(trained, new_classifier(exp, "refbert", folder, 2).base_model) <= {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }


def test_classifiers_share_pooler_and_head_and_keep_their_encoder(exp: Experiment) -> None:
    folders = {system: saved(exp, system, f"general-{system}") for system in ("tinybert", "refbert")}
    plain = new_classifier(exp, "tinybert", folders["tinybert"], 2)
    reading = new_classifier(exp, "refbert", folders["refbert"], 2)
    heads = [
        {name: value for name, value in student.named_parameters() if "pooler" in name or "classifier" in name}
        for student in (plain, reading)
    ]
    assert len(heads[0]) == 4 and heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    for student, folder in ((plain, folders["tinybert"]), (reading, folders["refbert"])):
        assert differing(student.bert, load_encoder(folder)) == set()


@pytest.mark.parametrize(("num_labels", "problem"), [(1, "regression"), (3, "single_label_classification")])
def test_a_classifier_comes_back_from_disk_as_it_was(exp: Experiment, num_labels: int, problem: str) -> None:
    student = new_classifier(exp, "refbert", saved(exp, "refbert", "general-refbert"), num_labels)
    folder = model_folder(exp, "prediction-refbert")
    save_folder(folder, student.save_pretrained, RECORD)
    again = load_classifier(folder)
    assert differing(student, again) == differing(again, student) == set()
    assert (again.config.num_labels, again.config.problem_type) == (num_labels, problem)


def test_the_shape_is_the_experiments_and_the_rest_the_teachers(exp: Experiment) -> None:
    config = student_config(exp, "refbert")
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 24, 4)
    assert (config.intermediate_size, config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (48, 0.1, 0.1)
    assert (config.vocab_size, config.max_position_embeddings, config.reference_size) == (30522, 96, 32)
    assert (config.reference_count, config.reference_max_length) == (2, 16)
    assert student_config(exp, "tinybert").reference_count == 0


# -- on disk ---------------------------------------------------------------------------------------------------------


def write_text(text: str) -> Any:
    return lambda folder: (folder / "weights").write_text(text)


def test_a_folder_is_saved_once_its_record_stands(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "job"
    assert not is_saved(folder)
    save_folder(folder, write_text("first"), RECORD)
    assert is_saved(folder) and training_record(folder) == RECORD
    assert (folder / "weights").read_text() == "first"
    # The same model of another run, which came second.
    save_folder(folder, write_text("second"), {**RECORD, "seconds": 9.0})
    assert (folder / "weights").read_text() == "first" and training_record(folder) == RECORD
    assert [path.name for path in folder.parent.iterdir()] == ["job"], "no debris"


def test_a_folder_without_a_record_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    save_folder(folder, write_text("old"), RECORD)
    (folder / "training.json").unlink()
    (folder / "stray").write_text("")
    save_folder(folder, write_text("new"), RECORD)
    assert is_saved(folder) and (folder / "weights").read_text() == "new" and not (folder / "stray").exists()


def test_a_fault_while_writing_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "job"
    save_folder(folder, write_text("old"), RECORD)

    def half(path: Path) -> None:
        (path / "weights").write_text("ne")
        assert (folder / "weights").read_text() == "old", "a reader sees the old one all the while"
        raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        save_folder(folder, half, {})
    assert (folder / "weights").read_text() == "old" and training_record(folder) == RECORD

    def no_record(*_: object) -> None:
        raise RuntimeError("pulled the plug")

    monkeypatch.setattr(students, "write_json", no_record)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        save_folder(folder, write_text("new"), {})
    assert (folder / "weights").read_text() == "old" and training_record(folder) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["job"], "no debris"


def test_a_first_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "job"
    with pytest.raises(ZeroDivisionError):
        save_folder(folder, lambda path: 1 // 0, {})
    assert not folder.exists() and list(folder.parent.iterdir()) == []


def test_the_budget_adds_up_over_the_stages(tmp_path: Path) -> None:
    first = add_record(TrainState(step=10, samples=120, seconds=2.04, skipped=2), None)
    assert first == {"steps": 10, "samples": 120, "seconds": 2.0, "skipped": 2}
    save_folder(tmp_path / "general", write_text(""), first)
    second = add_record(TrainState(step=5, samples=60, seconds=1.5, skipped=1, stalled="no"), tmp_path / "general")
    assert second["stalled"] == "no"
    save_folder(tmp_path / "intermediate", write_text(""), second)
    third = add_record(TrainState(step=1, samples=12, seconds=0.25), tmp_path / "intermediate")
    assert third == {"steps": 16, "samples": 192, "seconds": pytest.approx(3.75, abs=0.1), "skipped": 3}


def test_width_maps_go_on_from_stage_to_stage(exp: Experiment, tmp_path: Path) -> None:
    teacher = Teacher.load(exp.teacher.model)
    student = new_encoder(exp, "tinybert")
    plan = LayerPlan.make(exp.distill, student.config, teacher)

    def projections() -> torch.nn.Module:
        return EncoderModule(student, teacher, plan, exp.distill).projections

    torch.manual_seed(1)
    first = projections()
    folder = tmp_path / "general"
    folder.mkdir()
    save_projections(folder, first)
    torch.manual_seed(2)
    second = projections()
    assert differing(first, second)
    load_projections(folder, second)
    assert differing(first, second) == set()
    shutil.rmtree(folder)
