"""``refbert diagnose`` of a real run, and of what is none."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from pages import Page
from tiny import tiny_experiment

from launchers.diagnose import diagnose
from refbert_dist import pipeline
from refbert_dist.artifacts import map_tensors, read_json
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.diagnostics import information
from refbert_dist.diagnostics import run as module
from refbert_dist.diagnostics.information import SECOND
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.report.run import write_report
from refbert_dist.stages.scores import answers_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    systems = 'systems=["refbert","tinybert","student"]'
    exp = tiny_experiment(tmp_path_factory.mktemp("diagnosed"), systems, "corpus=null", "evaluate.latency_repeats=0")
    pipeline.run(exp, ["evaluate"])
    return exp


def test_a_run_is_diagnosed_from_its_own_models(finished: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "SEEDS", (0,))
    found = module.diagnose(finished)
    assert read_json(finished.run.dir / "diagnostics.json") == found
    assert (found["rows"], found["train_rows"], found["measure"]) == (24, 60, "accuracy")

    rows = {(row["system"], row["beside"]): row for row in found["information"]}
    assert set(rows) == {(system, beside) for system in ("refbert", "tinybert") for beside in SECOND}
    assert all(row["info_nce"] <= row["limit"] == math.log(24) for row in rows.values())
    for system in ("refbert", "tinybert"):
        # What is the teacher's own tells most of it, and zeros tell nothing that the student does not.
        assert rows[system, SECOND[-1]]["info_nce"] > 1 > rows[system, "references"]["info_nce"]
        alone = rows[system, "nothing"]["nearest_neighbours"]
        assert rows[system, "zeros"]["nearest_neighbours"] == pytest.approx(alone, abs=0.05)

    labels = [TokenSet.open(tokens_artifact(finished, part)).labels for part in ("train", "dev")]  # type: ignore[arg-type]
    assert labels[0] is not None and labels[1] is not None
    nearest = NeighbourTable.open(neighbours_artifact(finished, "dev")).prefix(1)[:, 0]
    same = labels[0][nearest] == labels[1]
    right = map_tensors(answers_path(finished.run.dir, "refbert"))["logits"].argmax(axis=1) == labels[1]
    cells = {cell["neighbour"]: cell for cell in found["by_label"]}
    assert cells["the input's label"]["rows"] == same.sum()
    assert cells["another label"]["systems"]["refbert"]["mean"] == pytest.approx(right[~same].mean())
    assert set(cells["any"]["systems"]) == {"teacher", "knn", "refbert", "tinybert", "student"}
    assert set(cells["any"]["beside_tinybert"]) == {"refbert", "student"}
    assert sum(row["rows"] for row in found["by_similarity"]) == 24
    alone = {row["system"]: row["scores"][0] for row in found["mixed"]}
    assert alone == {name: pytest.approx(cells["any"]["systems"][name]["mean"]) for name in ("refbert", "tinybert")}

    attention = {(row["system"], row["neighbour"]): row for row in found["attention"]}
    assert {system for system, _ in attention} == {"refbert", "student"}
    row = attention["refbert", "the input's label"]
    assert len(row["heads"]) == 4 and row["mean"] == pytest.approx(np.mean(row["heads"]))
    # A student of a few steps looks at everything alike.
    assert row["mean"] == pytest.approx(row["if_even"], abs=0.05)

    page = Page(write_report(finished))
    assert len(page.table("student", "beside its states")) == 12
    assert len(page.table("student", "nearest has")) == 4
    assert "Attention of the first layer on references" in page.text


def test_the_command_shows_what_it_writes(
    finished: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(information, "SEEDS", (0,))
    diagnose(finished.run.dir, dry_run=True)
    assert capsys.readouterr().out == f"would write {finished.run.dir}/diagnostics.json\n"
    diagnose(finished.run.dir, dry_run=False)
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"{finished.run.dir}/diagnostics.json"
    assert "RefBERT - TinyBERT" in shown and "On 24 held-out rows" in shown


def test_what_cannot_be_diagnosed_is_refused(finished: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        diagnose(tmp_path, dry_run=True)
    with pytest.raises(UserError, match="task is null"):
        module.check(finished.model_copy(update={"task": None}))
    without = finished.references.model_copy(update={"count": 0})
    with pytest.raises(UserError, match=r"references\.count is 0"):
        module.check(finished.model_copy(update={"references": without}))
    shutil.copytree(finished.run.dir, tmp_path / "run")
    moved = finished.model_copy(update={"run": finished.run.model_copy(update={"dir": tmp_path / "run"})})
    module.check(moved)
    answers_path(moved.run.dir, "tinybert").unlink()
    with pytest.raises(RefusedError, match=r"answers/tinybert.safetensors is missing; run refbert evaluate"):
        module.check(moved)
    shutil.rmtree(moved.run.dir / "models" / "prediction-refbert")
    with pytest.raises(RefusedError, match="has no student refbert yet"):
        module.check(moved)
