"""The whole pipeline in this process, on a tiny real experiment."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_experiment, tiny_task, tiny_teacher

import refbert_dist
from refbert_dist import pipeline
from refbert_dist.artifacts import read_json, sealed, write_json
from refbert_dist.cache.contract import states_artifact
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.pipeline import missing_stages
from refbert_dist.tracking.metrics import read_metrics

ALL = [stage.name for stage in pipeline.STAGES if stage.name not in ("augment", "benchmark", "search", "submission")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def done(root: Path) -> Experiment:
    exp = tiny_experiment(root)
    assert pipeline.run(exp) == ALL
    return exp


def test_a_second_run_has_nothing_to_do(done: Experiment) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.cache.dir.rglob("*") if path.is_file()}
    assert pipeline.run(done) == []
    assert {path: path.stat().st_mtime_ns for path in done.cache.dir.rglob("*") if path.is_file()} == before


def test_results_hold_all_that_a_table_needs(done: Experiment) -> None:
    rows = read_json(done.run.dir / "results.json")
    assert {(row["system"], row["metric"]) for row in rows} == {
        (system, metric) for system in ("teacher", "refbert", "tinybert", "knn") for metric in ("accuracy", "f1")
    }
    by_system = {row["system"]: row for row in rows}
    assert by_system["refbert"]["steps"] == by_system["tinybert"]["steps"] == 6 + 4 + 4
    assert by_system["refbert"]["params"] > by_system["tinybert"]["params"]
    assert all(row["n"] == 24 and row["seed"] == 1 and 0 <= row["score"] <= 1 for row in rows)


def test_metrics_of_every_job_are_there(done: Experiment) -> None:
    records = list(read_metrics(done.run.dir))
    steps = {job: [record["step"] for record in records if record["job"] == job] for job in {r["job"] for r in records}}
    assert steps["general-refbert"] == list(range(1, 7))
    assert {
        f"{phase}-{system}" for phase in ("general", "intermediate", "prediction") for system in done.systems
    } < set(steps)
    general = next(record for record in records if record["job"] == "general-refbert")
    assert {"loss", "embedding", "hidden", "attention", "learning_rate"} < set(general)


def test_both_students_start_from_the_same_weights(done: Experiment) -> None:
    from refbert_dist.stages.students import new_encoder

    plain, reading = (dict(new_encoder(done, system).named_parameters()) for system in ("tinybert", "refbert"))
    assert all((reading[name] == weight).all() for name, weight in plain.items())
    assert {name.split(".")[5] for name in reading.keys() - plain.keys()} == {"reference_key", "reference_value"}


def test_the_exported_folder_predicts_alone_what_was_evaluated(done: Experiment, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(done.run.dir / "export", folder)
    texts = tokens_artifact_texts(done, "dev")
    answers = refbert_dist.RefBertPipeline(folder)(texts)
    from refbert_dist.data.tokens import TokenSet

    labels = TokenSet.open(tokens_artifact(done, "dev")).labels
    assert labels is not None
    accuracy = np.mean([answer["label"] == label for answer, label in zip(answers, labels, strict=True)])
    row = next(
        row
        for row in read_json(done.run.dir / "results.json")
        if (row["system"], row["metric"]) == ("refbert", "accuracy")
    )
    assert accuracy == pytest.approx(row["score"], abs=1e-6)
    assert all(len(answer["references"]) == 2 for answer in answers)


def tokens_artifact_texts(exp: Experiment, part: str) -> list[tuple[str, str | None]]:
    from refbert_dist.data.tokens import TokenSet

    return TokenSet.open(tokens_artifact(exp, part)).texts()  # type: ignore[arg-type]


def test_the_export_is_an_ordinary_transformers_model(done: Experiment) -> None:
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(done.run.dir / "export")
    assert type(model).__name__ == "RefBertForSequenceClassification"
    assert model.config.reference_count == 2
    assert "| RefBERT k=2 |" in (done.run.dir / "export" / "README.md").read_text()


def test_another_shape_shares_all_that_does_not_depend_on_it(done: Experiment, root: Path) -> None:
    other = tiny_experiment(root, "student.layers=3", "student.heads=6", "run.dir=" + str(root / "run2"))
    names = [stage.name for stage in missing_stages(other)]
    assert names == ["distill-general", "distill-task", "evaluate", "export"]
    assert pipeline.run(other) == names  # heads differ from the teacher's: relations instead of scores


def test_a_cache_of_all_layers_serves_every_depth(root: Path) -> None:
    paths = {
        states_artifact(tiny_experiment(root, "cache.layers=all", f"student.layers={layers}"), "general").path
        for layers in (1, 2, 3)
    }
    assert len(paths) == 1


def test_online_targets_need_no_cache_and_teach_the_same(done: Experiment, root: Path) -> None:
    everything = ("distill.targets=online", "references.states=online")
    online = tiny_experiment(root, *everything, "run.dir=" + str(root / "online"), "task=null")
    assert [stage.name for stage in missing_stages(online)] == ["distill-general", "export"]
    pipeline.run(online)
    losses = [
        [record["loss"] for record in read_metrics(exp.run.dir) if record["job"] == "general-refbert"]
        for exp in (done, online)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # the cache rounds to float16


def test_without_references_only_tinybert_is_trained_and_no_bank_shipped(root: Path) -> None:
    exp = tiny_experiment(root, "references.count=0", "run.dir=" + str(root / "plain"), "corpus=null")
    assert "retrieve" not in pipeline.run(exp)
    assert not (exp.run.dir / "export" / "bank").exists()
    assert {row["system"] for row in read_json(exp.run.dir / "results.json")} == {"teacher", "tinybert"}
    assert refbert_dist.RefBertPipeline(exp.run.dir / "export")([("a", "b")])[0].keys() == {
        "label",
        "name",
        "probabilities",
    }


def test_regression_is_scored_by_correlation(root: Path, tmp_path: Path) -> None:
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    for split, count in (("train", 40), ("dev", 12)):
        rows = [
            f"{row}\tg\tf\t2012\t{row}\ts\ts\tline {row} of {split} says this\tand number {row} says that\t{row % 6}"
            for row in range(count)
        ]
        (tmp_path / f"{split}.tsv").write_text("\n".join([header, *rows]) + "\n")
    exp = tiny_experiment(
        root, "task.name=STS-B", f"task.path={tmp_path}", "corpus=null", "run.dir=" + str(tmp_path / "run")
    )
    pipeline.run(exp)
    rows_of = read_json(exp.run.dir / "results.json")
    assert {row["metric"] for row in rows_of} == {"pearson", "spearman"}
    assert refbert_dist.RefBertPipeline(exp.run.dir / "export")([("this", "that")])[0].keys() == {"score", "references"}


def test_a_directory_of_another_experiment_is_refused(done: Experiment, root: Path) -> None:
    before = (done.run.dir / "experiment.yaml").read_bytes()
    with pytest.raises(UserError, match=r"student\.layers is 2 there and 1 here"):
        pipeline.run(tiny_experiment(root, "student.layers=1"))
    assert (done.run.dir / "experiment.yaml").read_bytes() == before


def test_settings_that_change_no_result_may_change(done: Experiment, root: Path) -> None:
    again = tiny_experiment(root, "launch.processes=3", "engine.zero_stage=1", "tracking.log_steps=7")
    assert pipeline.run(again) == []


def test_caches_of_another_teacher_or_other_data_are_refused(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "corpus=null", "references.count=0")
    pipeline.run(exp, ["cache-task"])
    artifact = states_artifact(exp, "task")
    manifest = artifact.manifest()
    for ingredient, change in (
        ("teacher", "0" * 32),
        ("tokenizer", "0" * 32),
        ("data", "0" * 32),
        ("codec", "fp16/0"),
    ):
        changed = {**manifest, "ingredients": {**manifest["ingredients"], ingredient: change}}
        write_json(artifact.path / "manifest.json", sealed(changed))
        with pytest.raises(UserError, match=f"made with another {ingredient} "):
            pipeline.run(exp, ["distill-task"])
    write_json(artifact.path / "manifest.json", sealed(manifest))

    tiny_task(tmp_path / "task", seed=5)
    with pytest.raises(UserError, match=r"train\.tsv has changed"):
        pipeline.run(exp, ["distill-task"])


def test_a_teacher_that_changed_in_place_is_seen(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "task=null", "references.count=0")
    pipeline.run(exp, ["cache-general"])
    shutil.rmtree(tmp_path / "teacher")
    tiny_teacher(tmp_path / "teacher", seed=9)
    with pytest.raises(UserError, match="made with another teacher"):
        pipeline.run(exp, ["distill-general"])


def test_a_run_directory_in_use_is_refused(done: Experiment) -> None:
    from refbert_dist.rundir import open_run

    with open_run(done), pytest.raises(UserError, match="in use by another refbert command"):
        pipeline.run(done)


def test_a_pool_smaller_than_k_plus_one_is_refused(tmp_path: Path) -> None:
    tiny_teacher(tmp_path / "teacher")
    tiny_task(tmp_path / "task", train=3, dev=3)
    exp = tiny_experiment(tmp_path, "references.count=3", "corpus=null")
    with pytest.raises(UserError, match=r"references\.count is 3"):
        pipeline.run(exp)


def test_a_second_task_shares_the_general_students(done: Experiment, root: Path, tmp_path: Path) -> None:
    other = tiny_experiment(root, f"task.path={tiny_task(tmp_path / 'task', seed=3)}", f"run.dir={tmp_path / 'run'}")
    names = [stage.name for stage in missing_stages(other)]
    assert "distill-task" in names and "distill-general" not in names and "cache-general" not in names


def test_shared_models_of_a_teacher_that_changed_in_place_are_refused(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "systems=[tinybert]", "references.count=0")
    pipeline.run(exp, ["distill-general", "finetune"])
    shutil.rmtree(tmp_path / "teacher")
    tiny_teacher(tmp_path / "teacher", seed=9)
    again = tiny_experiment(tmp_path, "systems=[tinybert]", "references.count=0", f"run.dir={tmp_path / 'second'}")
    with pytest.raises(UserError, match=r"model\.safetensors has changed since the model in .* was trained"):
        pipeline.run(again)
