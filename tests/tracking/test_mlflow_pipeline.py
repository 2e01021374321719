"""Stages that really run, and what MLflow shows of them."""

import json
from pathlib import Path

import pytest
from mlflow_stores import Stored
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.data.tokens import tokens_artifact


@pytest.mark.usefixtures("store_made")
def test_a_run_shows_what_its_artefacts_hold_and_what_its_stages_take(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_dir / "experiment.yaml").unlink()
    exp = tiny_experiment(tmp_path, "tracking.mlflow=true", "corpus=null", "references.retriever=random")
    assert pipeline.run(exp, ["prepare"]) == ["prepare"]
    prefix = "refbert.fingerprint."
    parts = ("tokens train", "tokens dev")
    assert fingerprints(run_dir) == {
        f"{prefix}tokens {part}": tokens_artifact(exp, part).manifest()["fingerprint"] for part in ("train", "dev")
    }
    assert pipeline.run(exp, ["cache-task"]) == ["finetune", "cache-task"]
    found = fingerprints(run_dir)
    assert found.keys() == {f"{prefix}{label}" for label in (*parts, "teacher states task")}
    assert all(len(value) >= 16 for value in found.values())

    store = Stored(run_dir)
    lines = [json.loads(line) for line in (run_dir / "system.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"prepare", "finetune", "cache-task"}
    assert len(store.points("run", "system/memory_gb")) == len(lines)
    starts = read_json(run_dir / "provenance.json")
    assert store.runs["run"].data.tags["refbert.version"] == starts[-1]["version"]
    assert store.runs["run"].data.params["student.layers"] == "2"
    assert set(store.statuses()) == {"run", "run/finetune"}

    # Copied from a place that does not see the teacher.
    (tmp_path / "teacher").rename(tmp_path / "gone")
    assert pipeline.fingerprints(run_dir) == {}


def fingerprints(run_dir: Path) -> dict[str, str]:
    """As the store has them."""
    tags = Stored(run_dir).runs["run"].data.tags
    return {name: value for name, value in tags.items() if name.startswith("refbert.fingerprint.")}
