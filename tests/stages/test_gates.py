"""What must hold before anything is distilled on a task."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from teachers import lively_teacher
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.config import Experiment
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import process_group
from refbert_dist.errors import RefusedError
from refbert_dist.models.teacher import Teacher
from refbert_dist.stages.answers import answers, teacher_forward
from refbert_dist.stages.gates import check_labels, check_teacher, constant_score
from refbert_dist.stages.students import model_folder

CPU = torch.device("cpu")
GAIN = "task.min_teacher_gain=0.05"


def classifier(folder: Path, *labels: str) -> Path:
    """Make the model in ``folder`` say that it is a classifier with these labels."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"architectures": ["BertForSequenceClassification"]}
    if labels:
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    path.write_text(json.dumps(config))
    return folder


# -- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("entailment", "neutral", "contradiction"), r"with 3 label\(s\) \(entailment, .*\), but MRPC has 2; give"),
        (("equivalent", "not_equivalent"), r"but those of MRPC are not_equivalent, equivalent in this order; give"),
        (("negative", "positive"), r"\(negative, positive\), but those of MRPC are not_equivalent, equivalent; give"),
    ],
)
def test_a_classifier_of_other_labels_is_refused(tmp_path: Path, labels: tuple[str, ...], words: str) -> None:
    off = tiny_experiment(tmp_path)
    classifier(tmp_path / "teacher", *labels)
    with pytest.raises(RefusedError, match=words):
        check_labels(tiny_experiment(tmp_path, GAIN))
    check_labels(off)


@pytest.mark.parametrize(
    "labels", [("not equivalent", "Equivalent"), ("LABEL_0", "LABEL_1"), (), ("not_equivalent", "equivalent")]
)
def test_a_classifier_of_the_same_labels_passes(tmp_path: Path, labels: tuple[str, ...]) -> None:
    exp = tiny_experiment(tmp_path, GAIN)
    check_labels(exp)  # a plain encoder
    classifier(tmp_path / "teacher", *labels)
    check_labels(exp)


def test_labels_are_checked_before_fine_tuning(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, GAIN, "corpus=null")
    classifier(tmp_path / "teacher", "a", "b", "c")
    with pytest.raises(RefusedError, match="already a classifier"):
        pipeline.run(exp, ["finetune"])
    assert not (exp.run.dir / "checkpoints").exists()


# -- the score -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        ("MRPC", [1, 1, 0, 1], 0.75),
        ("SST-2", [0, 0, 0, 1, 1], 0.6),
        ("CoLA", [1, 1, 0, 1], 0.0),
        ("STS-B", [1.0, 2.5, 5.0], 0.0),
    ],
)
def test_the_best_constant_answer(task: str, labels: list[float], expected: float) -> None:
    assert constant_score(task_spec(task), np.array(labels, np.float32)) == pytest.approx(expected)


@pytest.fixture
def world() -> Iterator[None]:
    with process_group(60):
        yield


def knowing(root: Path, right: float) -> tuple[Experiment, Teacher]:
    """A teacher, and a task of whose dev rows it has ``right`` right: rows are labelled by what it answers."""
    tiny_experiment(root)
    lively_teacher(root / "teacher", "bert")
    exp = tiny_experiment(root, GAIN, "corpus=null")
    pipeline.run(exp, ["prepare"])
    torch.manual_seed(4)
    teacher = Teacher.load(exp.teacher.model, num_labels=2)
    dev = TokenSet.open(tokens_artifact(exp, "dev"))
    difference = np.diff(np.concatenate(list(answers(teacher_forward(teacher, dev, CPU), len(dev), 8))))[:, 0]
    teacher.model.classifier.bias.data[1] -= float(np.median(difference))
    said = difference > np.median(difference)
    assert said.sum() == len(dev) // 2
    order = np.argsort(difference)  # so that what is wrong is wrong in both classes alike
    wrong = order[:: max(1, round(1 / (1 - right)))] if right < 1 else []
    said[wrong] = ~said[wrong]
    path = root / "task" / "dev.tsv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    changed = [f"{int(label)}{line[1:]}" for label, line in zip(said, lines, strict=True)]
    path.write_text("\n".join([header, *changed]) + "\n", encoding="utf-8")
    again = tiny_experiment(root, GAIN, "corpus=null", f"cache.dir={root / 'again'}")
    pipeline.run(again, ["prepare"])
    return again, teacher


def test_a_teacher_that_knows_the_task_passes(tmp_path: Path, world: None) -> None:
    exp, teacher = knowing(tmp_path, 1.0)
    assert check_teacher(exp, teacher, CPU) == {"metric": "accuracy", "teacher": 1.0, "constant": 0.5, "required": 0.05}
    off = exp.model_copy(update={"task": exp.task.model_copy(update={"min_teacher_gain": None})})  # type: ignore[union-attr]
    assert check_teacher(off, teacher, CPU) is None


def test_a_teacher_that_guesses_is_refused(tmp_path: Path, world: None) -> None:
    exp, teacher = knowing(tmp_path, 0.5)
    said = r"is 0\.500 on dev of MRPC, but .* has 0\.500, and .*asks for 0\.05 more: there is nothing to distil;"
    with pytest.raises(RefusedError, match=said):
        check_teacher(exp, teacher, CPU)


def test_classes_in_another_order_are_recognised(tmp_path: Path, world: None) -> None:
    exp, teacher = knowing(tmp_path, 1.0)
    for tensor in (teacher.model.classifier.weight, teacher.model.classifier.bias):
        tensor.data = tensor.data.flip(0)
    with pytest.raises(
        RefusedError, match=r"accuracy of .* is 0\.000.*with its classes taken in the order 1, 0 it has 1\.000"
    ):
        check_teacher(exp, teacher, CPU)


def test_nothing_is_trained_on_a_teacher_that_does_not_pass(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "task.min_teacher_gain=0.9", "corpus=null", "systems=[tinybert]")
    with pytest.raises(RefusedError, match=r"task\.min_teacher_gain asks for 0\.9 more"):
        pipeline.run(exp, ["distill-task"])
    assert not model_folder(exp, "intermediate-tinybert").exists()
    assert not (exp.run.dir / "checkpoints" / "intermediate-tinybert").exists()
