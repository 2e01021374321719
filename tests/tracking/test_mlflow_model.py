"""The exported model in MLflow's registry: one version for a run, which loads and answers as the pipeline does."""

import logging
from pathlib import Path
from typing import Any

import pytest
from finished import PAIRS, SINGLES, config, exported
from mlflow_stores import Server, Stored, new_run, sync

from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.errors import UserError
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.models.modeling_refbert import RefBertModel
from refbert_dist.references.guards import TextPair
from refbert_dist.tracking.mlflow_model import exported_model


@pytest.mark.parametrize(
    ("texts", "fields"),
    [(PAIRS, {}), (PAIRS, {"num_labels": 3}), (SINGLES, {"num_labels": 1}), (SINGLES, {"reference_count": 0})],
)
def test_the_signature_names_what_comes_out(tmp_path: Path, texts: list[TextPair], fields: dict[str, Any]) -> None:
    model = exported_model(exported(tmp_path, texts[:20], **fields))
    assert model is not None
    (answer,) = RefBertPipeline(tmp_path, device="cpu")(texts[20:21])
    assert [column["name"] for column in model.outputs] == list(answer)
    kinds = {"double": float, "long": int}
    for column in model.outputs:
        value = answer[column["name"]]
        if column["type"] == "array":
            assert {type(item) for item in value} == {kinds[column["items"]["type"]]}
        else:
            assert type(value) is kinds[column["type"]]


@pytest.mark.faults
def test_a_registered_model_loads_and_predicts_and_is_registered_once(
    run_dir: Path, server: Server, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    import mlflow
    import pandas

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    settings = {"uri": server.uri, "experiment": "model", "register_model": "same-topic"}
    assert sync(run_dir, **settings).sync_once("RUNNING") == 0
    store = Stored(uri=server.uri, experiment="model")
    assert store.client.search_registered_models() == []

    folder = exported(run_dir / "export", PAIRS[:20], num_labels=3)
    copy = sync(run_dir, **settings)
    for _ in range(2):
        copy.sync_once("FINISHED")
    sync(run_dir, **settings).sync_once()
    (run_dir / "mlflow.json").unlink()
    sync(run_dir, **settings).sync_once()
    (version,) = store.client.search_model_versions("name = 'same-topic'")
    run = store.runs["run"]
    assert (int(version.version), version.run_id) == (1, run.info.run_id)
    assert not (run_dir / ".mlflow-model").exists()

    model = mlflow.pyfunc.load_model("models:/same-topic/1")
    assert model.metadata.signature.inputs.input_names() == ["text", "text_b"]
    frame = pandas.DataFrame(PAIRS[15:], columns=["text", "text_b"])
    assert model.predict(frame) == RefBertPipeline(folder, device="cpu")(PAIRS[15:])
    local = Path(mlflow.artifacts.download_artifacts("models:/same-topic/1"))
    assert not [path for path in local.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin")]
    required = (local / "requirements.txt").read_text()
    assert all(f"{name}==" in required for name in ("torch", "transformers", "refbert-dist")) and "+" not in required
    assert not [warning for warning in recwarn if "input example" in str(warning.message)]


@pytest.mark.usefixtures("store_made")
def test_a_text_alone_needs_no_second_column(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas

    folder = exported(run_dir / "export", SINGLES[:20], num_labels=1)
    copy = sync(run_dir, register_model="sentiment")
    copy.sync_once("FINISHED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copy.uri)
    model = mlflow.pyfunc.load_model("models:/sentiment/1")
    texts = [text for text, _ in SINGLES[25:]]
    answers = RefBertPipeline(folder, device="cpu")(SINGLES[25:])
    assert model.predict(pandas.DataFrame({"text": texts})) == answers
    assert model.predict(pandas.DataFrame({"text": texts, "text_b": [None] * len(texts)})) == answers


@pytest.mark.usefixtures("store_made")
def test_an_encoder_alone_is_nothing_to_register(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    RefBertModel(config()).save_pretrained(run_dir / "export")
    for _ in range(2):
        sync(run_dir, register_model="encoder").sync_once("FINISHED")
    assert caplog.text.count("so there is nothing to register as encoder") == 1
    assert Stored(run_dir).client.search_registered_models() == []


@pytest.mark.usefixtures("store_made")
def test_only_the_search_registers_and_no_trial_of_it(run_dir: Path) -> None:
    exported(new_run(run_dir / "trials" / "0001") / "export", SINGLES[:20])
    sync(run_dir, register_model="winner").sync_once("FINISHED")
    assert Stored(run_dir).client.search_registered_models() == []
    exported(run_dir / "export", SINGLES[:20])
    sync(run_dir, register_model="winner").sync_once("FINISHED")
    assert len(Stored(run_dir).client.search_model_versions("name = 'winner'")) == 1


@pytest.mark.parametrize("name", ["a/b", "models:/a", "", "it's"])
def test_a_name_that_cannot_be_registered_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"tracking.register_model is '{name}'"):
        with_name(name)
    assert with_name("RefBERT MRPC-1.2_x").tracking.register_model == "RefBERT MRPC-1.2_x"


def with_name(name: str) -> Experiment:
    return parse_experiment({"teacher": {"model": "x"}, "corpus": {"path": "y"}, "tracking": {"register_model": name}})
