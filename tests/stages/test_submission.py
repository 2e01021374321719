"""What GLUE's test server takes: its form, and that the answers are those of the student."""

import zipfile

import glue_layouts
import numpy as np
import pytest
import torch
import yaml
from tiny import tiny_values

from refbert_dist import pipeline
from refbert_dist.artifacts import map_tensors, read_json
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.data.glue import task_spec
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.stages import export, submission
from refbert_dist.stages.scores import answers_path, scores
from refbert_dist.stages.students import load_classifier, model_folder
from refbert_dist.stages.submission import table

FILES = {"test": "MNLI-m.tsv", "test-mismatched": "MNLI-mm.tsv", "diagnostic": "AX.tsv"}
SETTINGS = (
    "corpus=null",
    "systems=[refbert]",
    "finetune.steps=2",
    "distill.intermediate.steps=1",
    "distill.prediction.steps=1",
    "evaluate.latency_repeats=0",
    "task.title=MNLI of 12 rows",
    "task.test_file=test_matched.tsv",
    "task.test_mismatched_file=test_mismatched.tsv",
    "task.diagnostic_file=diagnostic.tsv",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """MNLI with all its files, evaluated and submitted by a student whose answers differ."""
    root = tmp_path_factory.mktemp("submission")
    values = tiny_values(root)
    values["task"] = {"name": "MNLI", "path": str(glue_layouts.glue_folder(root / "mnli", "MNLI"))}
    values["task"] |= {"max_length": 64, "min_teacher_gain": None}
    values = apply_overrides(values, SETTINGS)
    (root / "exp.yaml").write_text(yaml.safe_dump(values))
    exp = parse_experiment(values)
    pipeline.run(exp, ["distill-task"])
    folder = model_folder(exp, "prediction-refbert")
    student = load_classifier(folder)
    torch.manual_seed(1)
    for parameter in student.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    student.save_pretrained(folder)
    assert pipeline.run(exp, ["evaluate", "submission"]) == ["evaluate", "submission"]
    return exp


def lines(exp: Experiment, name: str) -> list[list[str]]:
    return [line.split("\t") for line in (exp.run.dir / "submission" / name).read_text().splitlines()]


def test_the_form_is_the_servers() -> None:
    # gluebenchmark.com/faq: tab-separated, columns index and prediction, the index from 0.
    assert table(task_spec("CoLA"), np.array([1, 0])) == "index\tprediction\n0\t1\n1\t0\n"
    assert table(task_spec("QNLI"), np.array([1])) == "index\tprediction\n0\tnot_entailment\n"
    assert table(task_spec("STS-B"), np.array([2.5, 7, -1], np.float32)) == (
        "index\tprediction\n0\t2.500\n1\t5.000\n2\t0.000\n"
    )


def test_every_test_row_is_answered_as_the_exported_model_answers_it(done: Experiment) -> None:
    export.run(done)
    model = RefBertPipeline(done.run.dir / "export", device="cpu")
    seen = set()
    for part, name in FILES.items():
        texts = TokenSet.open(tokens_artifact(done, part)).texts()  # type: ignore[arg-type]
        found = lines(done, name)
        assert found[0] == ["index", "prediction"]
        assert [line[0] for line in found[1:]] == [str(row) for row in range(12)]
        assert [line[1] for line in found[1:]] == [answer["name"] for answer in model(texts)]
        seen |= {line[1] for line in found[1:]}
    assert len(seen) > 1 and seen <= {"entailment", "neutral", "contradiction"}


def test_the_zip_holds_the_files_and_the_stage_says_what_is_missing(done: Experiment) -> None:
    folder = done.run.dir / "submission"
    with zipfile.ZipFile(folder / "submission.zip") as packed:
        assert packed.namelist() == list(FILES.values())
        assert all(packed.read(name) == (folder / name).read_bytes() for name in packed.namelist())
    result = read_json(done.run.dir / "stages" / "submission.json")["result"]
    assert result["rows"] == dict.fromkeys(FILES.values(), 12) and result["system"] == "refbert"
    assert result["other_size"] == list(FILES.values())
    assert set(result["missing"]) == {f"{name}.tsv" for name in glue_layouts.NAMES if name != "MNLI"}
    before = (folder / "submission.zip").read_bytes()
    submission.run(done)
    assert (folder / "submission.zip").read_bytes() == before


def test_both_dev_sets_are_scored(done: Experiment) -> None:
    rows = read_json(done.run.dir / "results.json")
    assert [(row["system"], row["metric"]) for row in rows] == [
        (system, metric) for metric in ("accuracy", "accuracy_mm") for system in ("teacher", "refbert", "knn")
    ]
    assert all(row["n"] == 12 and row["task"] == "MNLI of 12 rows" for row in rows)
    model = RefBertPipeline(done.run.dir / "export", device="cpu")
    for part, metric in (("dev", "accuracy"), ("dev-mismatched", "accuracy_mm")):
        tokens = TokenSet.open(tokens_artifact(done, part))  # type: ignore[arg-type]
        assert tokens.labels is not None
        logits = model.logits(tokens.texts())[0]
        kept = map_tensors(answers_path(done.run.dir, "refbert", part))["logits"]  # type: ignore[arg-type]
        assert np.abs(kept - logits).max() < 1e-2
        (row,) = (row for row in rows if (row["system"], row["metric"]) == ("refbert", metric))
        assert row["score"] == pytest.approx(scores(("accuracy",), logits, tokens.labels)["accuracy"], abs=1e-6)
    assert "| MNLI of 12 rows dev | accuracy | accuracy_mm |" in (done.run.dir / "export" / "README.md").read_text()


def test_nothing_but_the_flag_asks_for_it(done: Experiment) -> None:
    assert pipeline.run(done) == []
    (done.run.dir / "submission" / "submission.zip").unlink()
    assert [stage.name for stage in pipeline.missing_stages(done)] == []
    assert [stage.name for stage in pipeline.missing_stages(done, ["submission"])] == ["submission"]


def test_the_command_names_files_and_what_is_missing(
    done: Experiment, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from launchers import cli

    monkeypatch.setattr("sys.argv", ["refbert", "evaluate", str(done.run.dir.parent / "exp.yaml"), "--submission"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capfd.readouterr().out
    assert ended.value.code == 0
    assert "accuracy_mm" in out
    assert "submission.zip: MNLI-m.tsv (12 rows), MNLI-mm.tsv (12 rows), AX.tsv (12 rows), answered by refbert" in out
    assert "MNLI-m.tsv has another number of rows than GLUE's test file" in out
    assert "missing for a whole submission: CoLA.tsv, MRPC.tsv, QNLI.tsv, QQP.tsv, RTE.tsv, SST-2.tsv," in out
