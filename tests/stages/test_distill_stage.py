"""The students' stages: where they start, and what they leave beside a model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_experiment
from transformers import AutoTokenizer

from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.cache.models import general_student
from refbert_dist.errors import UserError
from refbert_dist.models.teacher import Teacher
from refbert_dist.stages.students import load_encoder, model_folder


def test_without_a_corpus_the_task_starts_from_the_given_weights(tmp_path: Path) -> None:
    start = ("student.init=teacher", "student.hidden=32", "student.intermediate=64", "distill.layer_map=[3,4]")
    frozen = ("distill.intermediate.learning_rate=1e-12", "distill.intermediate.weight_decay=0")
    # A random teacher gives all rows the same answer, which is as good as the best such answer, not worse.
    exp = tiny_experiment(tmp_path, "corpus=null", *start, *frozen, "task.min_teacher_gain=0")
    pipeline.run(exp, ["distill-task"])
    teacher = Teacher.load(exp.teacher.model).encoder.state_dict()
    name = "encoder.layer.{}.attention.self.key.weight"
    for system in exp.trained_systems():
        student = load_encoder(model_folder(exp, f"intermediate-{system}")).state_dict()
        for level, layer in enumerate((3, 4)):
            torch.testing.assert_close(student[name.format(level)], teacher[name.format(layer - 1)])
    result = read_json(exp.run.dir / "stages" / "distill-task.json")["result"]
    assert result["teacher_gate"] == {"metric": "accuracy", "teacher": 0.5, "constant": 0.5, "required": 0.0}
    assert result["refbert"]["steps"] == 8


def test_masked_language_leaves_its_head_beside_the_model_alone(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "distill.weights.mlm=1", "task=null", "distill.general.learning_rate=0.01")
    pipeline.run(exp)
    for system in exp.trained_systems():
        folder = general_student(exp, system)
        head = load_file(folder / "mlm_head.safetensors")
        shapes = {name: list(tensor.shape) for name, tensor in head.items()}
        wide = {"transform.dense.weight": [24, 24], "transform.dense.bias": [24], "bias": [30522]}
        assert shapes == {**wide, "transform.LayerNorm.weight": [24], "transform.LayerNorm.bias": [24]}
        assert head["bias"].abs().sum() > 0, "it was trained"
        assert not any("mlm" in name for name in load_file(folder / "model.safetensors"))
        records = (exp.run.dir / "metrics.jsonl").read_text()
        assert '"mlm"' in records
    assert not (exp.run.dir / "export" / "mlm_head.safetensors").exists()


def test_masked_language_needs_a_mask_token(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "distill.weights.mlm=1", "task=null", "references.count=0")
    folder = Path(exp.teacher.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"distill\.weights\.mlm is above 0 but .* has no mask token; set .*mlm=0"):
        pipeline.run(exp, ["distill-general"])
