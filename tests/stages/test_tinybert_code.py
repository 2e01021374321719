"""TinyBERT's code and the gate together, from fine-tuning to the exported folder; on one process and on several."""

import shutil
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from teachers import lively_teacher
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.cache.models import general_student, task_teacher, training_record
from refbert_dist.config import Experiment, load_experiment, to_yaml
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.models.teacher import Teacher
from refbert_dist.stages import distill
from refbert_dist.stages.students import load_classifier, load_encoder, model_folder
from refbert_dist.tracking.metrics import read_metrics

CODE = (
    *("teacher.head=tinybert", "distill.targets=online", "distill.padding=counted", "distill.keep=best"),
    *("distill.prediction_mean=samples_and_classes", "distill.evaluate_steps=2"),
)
GATE = ("references.gate=token", "references.gate_start=-2", "references.normalize=false")
ALONE = ("engine.optimizer=bert_adam", "export.onnx=true", "systems=[refbert]", "evaluate.latency_repeats=0")
STEPS = "distill.prediction={steps: 7, batch_size: 12, learning_rate: 2.0e-2}"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    root = tmp_path_factory.mktemp("code")
    tiny_experiment(root)
    lively_teacher(root / "teacher", "bert")
    exp = tiny_experiment(root, *CODE, *GATE, STEPS, *ALONE)
    pipeline.run(exp)
    return exp


def test_what_is_kept_scored_best_and_the_results_say_so(done: Experiment) -> None:
    rows: list[dict[str, Any]] = read_json(done.run.dir / "results.json")
    assert {row["system"] for row in rows if row["kept"] == "best"} == {"refbert"} < {row["system"] for row in rows}
    folder = model_folder(done, "prediction-refbert")
    best = training_record(folder)["best"]
    (score,) = (row["score"] for row in rows if (row["system"], row["metric"]) == ("refbert", "accuracy"))
    assert best["score"] == score and best["step"] in (2, 4, 6, 7)
    last = load_file(done.run.dir / "checkpoints" / "prediction-refbert" / "step-7" / "best.safetensors")
    kept = load_classifier(folder).state_dict()
    assert all(torch.equal(tensor, last[f"student.{name}"]) for name, tensor in kept.items())
    assert "their scores on dev were chosen" in (done.run.dir / "export" / "README.md").read_text()


def test_the_exported_folder_answers_alike_by_every_way(done: Experiment, tmp_path: Path) -> None:
    scores = read_json(done.run.dir / "stages" / "export.json")["result"]["scores"]
    rows = read_json(done.run.dir / "results.json")
    found = next(row["score"] for row in rows if (row["system"], row["metric"]) == ("refbert", "accuracy"))
    assert scores["torch"]["accuracy"] == scores["onnx"]["accuracy"] == found
    folder = shutil.copytree(done.run.dir / "export", tmp_path / "moved")
    texts = TokenSet.open(tokens_artifact(done, "dev")).texts()
    logits = [RefBertPipeline(folder, runtime=way).logits(texts)[0] for way in ("torch", "onnx")]  # type: ignore[arg-type]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.reference_gate, config.reference_normalize, config.classifier_head) == ("token", False, "tinybert")
    gate = load_encoder(folder).encoder.layer[0].attention.self.reference_gate
    assert gate.weight.abs().max() > 0 and (gate.bias + 2 / 50).abs().max() > 0, "it was trained"


def test_the_teacher_has_the_head(done: Experiment) -> None:
    teacher = Teacher.load(str(task_teacher(done)), num_labels=2)
    ids = torch.tensor([[101, 2054, 2003, 102]])
    with torch.no_grad():
        pooled = teacher.encoder(ids).pooler_output
        head = teacher.model.classifier
        expected = pooled.clamp(min=0) @ head.weight.T + head.bias
        found = teacher.train().logits(ids, None, None)
    assert pooled.min() < 0 and teacher.model.config.hidden_dropout_prob > 0
    assert (found - expected).abs().max() > 0  # the encoder has dropout, the head none
    torch.testing.assert_close(teacher.eval().logits(ids, None, None), expected)


def test_other_teachers_keep_their_heads(tmp_path: Path) -> None:
    lively_teacher(tmp_path / "teacher", "roberta")
    tiny_experiment(tmp_path)
    with pytest.raises(
        UserError, match=r"teacher\.head is 'tinybert' but .* of type 'roberta', .*set teacher\.head=bert"
    ):
        pipeline.check(tiny_experiment(tmp_path, "teacher.head=tinybert"))


def students(run_dirs: list[Path]) -> None:
    """What each of several processes does."""
    for run_dir in run_dirs:
        exp = load_experiment(run_dir / "experiment.yaml")
        distill.general(exp)
        distill.task(exp)


@pytest.mark.dist
def test_several_processes_lose_and_choose_as_one(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    lively_teacher(tmp_path / "teacher", "bert")

    def experiment(zero_stage: int) -> Experiment:
        run_dir = tmp_path / f"stage {zero_stage}"
        places = (f"run.dir={run_dir}", f"cache.dir={run_dir / 'cache'}", f"engine.zero_stage={zero_stage}")
        return tiny_experiment(tmp_path, *CODE, *GATE, *places, STEPS, "systems=[refbert]")

    alone, *spread = (experiment(stage) for stage in (1, 3))
    pipeline.run(alone, ["retrieve", "cache-general", "cache-task"])
    for exp in spread:
        shutil.copytree(alone.cache.dir, exp.cache.dir)
        exp.run.dir.mkdir(exist_ok=True)
        (exp.run.dir / "experiment.yaml").write_text(to_yaml(exp))
    pipeline.run(alone, ["distill-task"])
    forked.run(3, tmp_path / "logs", students, [exp.run.dir for exp in spread])
    wanted = [record["loss"] for record in read_metrics(alone.run.dir) if "refbert" in record["job"]]
    best = training_record(model_folder(alone, "prediction-refbert"))["best"]
    gates = [
        load_encoder(general_student(exp, "refbert")).encoder.layer[0].attention.self.reference_gate
        for exp in (alone, *spread)
    ]
    assert gates[0].weight.abs().max() > 1e-4
    for exp, gate in zip(spread, gates[1:], strict=True):
        found = [record["loss"] for record in read_metrics(exp.run.dir)]
        assert found == pytest.approx(wanted, rel=1e-4)
        assert training_record(model_folder(exp, "prediction-refbert"))["best"] == best
        for name, parameter in gate.named_parameters():
            torch.testing.assert_close(parameter, gates[0].get_parameter(name), rtol=1e-3, atol=1e-6)
