"""What is known of the tasks, against GLUE's own description (arXiv 1804.07461, table 1)."""

import pytest

from refbert_dist.data.glue import SUBMISSION_ROWS, TASKS, task_spec
from refbert_dist.errors import UserError


def test_metrics_are_those_of_glue() -> None:
    assert {name: spec.metrics for name, spec in TASKS.items()} == {
        "CoLA": ("mcc",),
        "SST-2": ("accuracy",),
        "MRPC": ("accuracy", "f1"),
        "STS-B": ("pearson", "spearman"),
        "QQP": ("accuracy", "f1"),
        "MNLI": ("accuracy",),
        "QNLI": ("accuracy",),
        "RTE": ("accuracy",),
        "WNLI": ("accuracy",),
        "same-topic": ("accuracy", "f1"),
        "looked-up": ("accuracy",),
    }
    assert [spec.name for spec in TASKS.values() if spec.is_regression] == ["STS-B"]
    assert [spec.name for spec in TASKS.values() if not spec.is_pair] == ["CoLA", "SST-2", "looked-up"]
    assert {spec.name: spec.num_labels for spec in TASKS.values() if spec.num_labels != 2} == {"STS-B": 1, "MNLI": 3}


def test_classes_are_numbered_as_on_the_hub() -> None:
    assert task_spec("MNLI").label_names == ("entailment", "neutral", "contradiction")
    assert task_spec("QNLI").label_names == task_spec("RTE").label_names == ("entailment", "not_entailment")
    assert task_spec("WNLI").label_names == ("not_entailment", "entailment")
    assert task_spec("QQP").label_names == ("not_duplicate", "duplicate")
    for spec in TASKS.values():
        assert spec.is_regression or spec.builtin or len(spec.label_names) == spec.num_labels


def test_together_the_tasks_make_a_whole_submission() -> None:
    written = [name for spec in TASKS.values() for name in spec.submission.values()]
    assert sorted(written) == sorted(SUBMISSION_ROWS) and len(set(written)) == 11


@pytest.mark.parametrize(
    ("task", "prediction", "cell"),
    [
        ("CoLA", 1, "1"),
        ("WNLI", 0, "0"),
        ("QQP", 1, "1"),
        ("MNLI", 2, "contradiction"),
        ("QNLI", 0, "entailment"),
        ("RTE", 1, "not_entailment"),
        ("STS-B", 3.14159, "3.142"),
        ("STS-B", 5.2, "5.000"),
        ("STS-B", -0.3, "0.000"),
    ],
)
def test_a_prediction_is_written_as_the_server_reads_it(task: str, prediction: float, cell: str) -> None:
    assert task_spec(task).cell(prediction) == cell


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cola", "did you mean 'CoLA'?"),
        ("stsb", "did you mean 'STS-B'?"),
        ("mnli-m", "did you mean 'MNLI'?"),
        ("qqqq", "not one of CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI, same-topic, looked-up"),
    ],
)
def test_unknown_task(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=f"task.name is '{name}'") as caught:
        task_spec(name)
    assert expected in str(caught.value)
