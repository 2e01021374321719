from pathlib import Path

import pytest

from refbert_dist.config import TaskConfig, load_experiment, parse_experiment, to_yaml


def test_an_ordinary_task_has_two_splits() -> None:
    task = TaskConfig(name="CoLA", path="x")
    assert task.splits == ("train", "dev")
    assert (task.file("train"), task.file("dev"), task.file("test")) == ("train.tsv", "dev.tsv", None)
    assert task.shown == "CoLA"
    assert TaskConfig(name="QQP", path="x", title="QQP-subset").shown == "QQP-subset"


def test_mnli_is_evaluated_on_two_files_unless_told_otherwise() -> None:
    task = TaskConfig(name="MNLI", path="x")
    assert task.splits == ("train", "dev", "dev-mismatched")
    assert (task.file("dev"), task.file("dev-mismatched")) == ("dev_matched.tsv", "dev_mismatched.tsv")
    one = TaskConfig(name="MNLI", path="x", dev_file="other.tsv", dev_mismatched_file=None)
    assert (one.splits, one.file("dev")) == (("train", "dev"), "other.tsv")


def test_further_files_are_further_splits_and_held_out_rows_are_in_their_place() -> None:
    files = {"test_file": "a.tsv", "test_mismatched_file": "b.tsv", "diagnostic_file": "c.tsv"}
    task = TaskConfig(name="MNLI", path="x", **files)  # type: ignore[arg-type]
    assert task.splits == ("train", "dev", "dev-mismatched", "test", "test-mismatched", "diagnostic")
    assert [task.file(split) for split in task.splits[3:]] == ["a.tsv", "b.tsv", "c.tsv"]
    assert task.source("test-mismatched") == "test_mismatched_file"
    held = TaskConfig(name="MNLI", path="x", held_out=0.1, **files)  # type: ignore[arg-type]
    assert held.splits == ("train", "dev") and held.source("dev") == "train_file"


@pytest.mark.parametrize("name", ["MNLI", "MRPC"])
def test_the_resolved_experiment_is_read_as_the_same(tmp_path: Path, name: str) -> None:
    exp = parse_experiment({"teacher": {"model": "m"}, "task": {"name": name, "path": "x"}})
    path = tmp_path / "experiment.yaml"
    path.write_text(to_yaml(exp))
    assert load_experiment(path) == exp
