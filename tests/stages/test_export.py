"""The exported folder holds all that a prediction needs and no trace of where it was made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import tiny_experiment
from transformers import AutoTokenizer

from refbert_dist import pipeline
from refbert_dist.bank.reader import ReferenceBank
from refbert_dist.config import Experiment
from refbert_dist.config.schema import ExportConfig
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.stages import export
from refbert_dist.stages.evaluate import student_forward
from refbert_dist.stages.setting import Setting
from refbert_dist.stages.students import load_classifier, model_folder, new_classifier

CPU = torch.device("cpu")
QUICK = (
    "systems=[refbert]",
    "finetune.steps=2",
    "distill.intermediate.steps=2",
    "distill.prediction.steps=2",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    exp = tiny_experiment(tmp_path_factory.mktemp("export"), "corpus=null", *QUICK)
    pipeline.run(exp)
    # After so short a training all answers are nearly the same, behind which mistakes could hide.
    folder = model_folder(exp, "prediction-refbert")
    student = load_classifier(folder)
    torch.manual_seed(1)
    for parameter in student.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    student.save_pretrained(folder)
    export.run(exp)
    return exp


def test_the_folder_is_self_contained(done: Experiment) -> None:
    folder = export.export_folder(done)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "manifest.json",
        "configuration_refbert.py",
        "modeling_refbert.py",
        "bm25s_lookup.py",
        "bank/bank.json",
        "bank/states-0-0.safetensors",
        "bank/texts-0.safetensors",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pkl", ".pt", ".tmp"))]
    assert not [path.name for path in done.run.dir.iterdir() if path.name.endswith(".tmp")]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["RefBertForSequenceClassification"] and config["reference_count"] == 2
    assert config["id2label"] == {"0": "not_equivalent", "1": "equivalent"}
    places = (str(done.run.dir), str(done.cache.dir), str(Path.home()))
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not [place for place in places if any(place.encode() in content for content in contents)]
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 64


def test_the_card_says_what_was_measured(done: Experiment) -> None:
    card = (export.export_folder(done) / "README.md").read_text()
    rows = {(row["system"], row["metric"]): row for row in json.loads((done.run.dir / "results.json").read_text())}
    assert "2 layers x 24, 4 heads, 48 intermediate; 2 references an input." in card
    for system in ("teacher", "refbert"):
        accuracy, f1 = (rows[system, metric] for metric in ("accuracy", "f1"))
        name = {"teacher": "teacher", "refbert": "RefBERT k=2"}[system]
        assert f"| {name} | {accuracy['score']:.4f} | {f1['score']:.4f} | {accuracy['params']:,} |" in card
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "library_name": "transformers",
        "tags": ["refbert", "distillation"],
        "pipeline_tag": "text-classification",
    }
    assert "- training: " in card and "- teacher: " in card and "`bm25s_lookup.py`" in card


def test_the_bank_holds_the_projected_states_of_every_training_row(done: Experiment) -> None:
    folder = export.export_folder(done)
    bank = ReferenceBank.open(folder / "bank")
    pool = TokenSet.open(tokens_artifact(done, "train"))
    said = bank.description
    assert (len(bank), said.count, said.max_length, said.texts) == (len(pool), 2, 16, "kept")
    assert list(bank.texts) == pool.texts()
    setting = Setting(done, "task", CPU)
    student = load_classifier(model_folder(done, "prediction-refbert")).eval()
    rows = np.array([[0, 59], [17, 33]])
    keys, values, mask = bank.gather(rows)
    with torch.inference_mode():
        expected = student.project_references(*setting.reference_states().rows(rows.reshape(-1)))
    for found, wanted in zip((keys, values), expected, strict=True):
        for place, row in enumerate(rows.reshape(-1).tolist()):
            length = min(16, int(pool.lengths[row]))
            assert mask.reshape(4, -1)[place].sum() == length
            np.testing.assert_allclose(
                found.reshape(4, *found.shape[2:])[place, :length], wanted[place, :length].numpy(), rtol=1e-3, atol=1e-3
            )


def test_the_exported_model_gives_the_probabilities_that_were_evaluated(done: Experiment) -> None:
    """Through texts, tokenizer, lookup and bank on one side; through caches and neighbour tables on the other."""
    dev = TokenSet.open(tokens_artifact(done, "dev"))
    setting = Setting(done, "task", CPU)
    student = load_classifier(model_folder(done, "prediction-refbert")).eval()
    logits = student_forward(student, setting, "refbert", "dev", dev)(np.arange(len(dev)))
    answers = RefBertPipeline(export.export_folder(done), device="cpu")(dev.texts())
    references = setting.references("refbert", "dev")
    assert references is not None
    assert [answer["references"] for answer in answers] == [
        [row for row in rows if row >= 0] for rows in references.rows.tolist()
    ]
    found = np.array([answer["probabilities"] for answer in answers])
    np.testing.assert_allclose(found, logits.softmax(-1).numpy(), atol=2e-3)
    assert np.ptp(found[:, 0]) > 5e-2, "answers must differ, or their order was not compared"


def test_exporting_again_replaces_the_folder(done: Experiment) -> None:
    folder = export.export_folder(done)
    before = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "stray").write_text("left from before")
    result = export.run(done)
    after = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    scores = result.pop("scores")
    assert result == {"folder": str(folder), "system": "refbert", "bytes": sum(map(len, after.values()))}
    dev = TokenSet.open(tokens_artifact(done, "dev"))
    answers = RefBertPipeline(folder, device="cpu")(dev.texts())
    assert dev.labels is not None
    accuracy = np.mean([answer["label"] == label for answer, label in zip(answers, dev.labels, strict=True)])
    assert scores["torch"]["accuracy"] == pytest.approx(accuracy)
    assert f"| torch | {accuracy:.4f} |" in (folder / "README.md").read_text()


def test_a_bank_is_exported_as_asked_for(done: Experiment) -> None:
    """In half the space and without texts; a run makes the folder again when that is asked for, and only then."""
    folder = export.export_folder(done)
    whole = (folder / "bank" / "states-0-0.safetensors").stat().st_size
    answers = RefBertPipeline(folder, device="cpu")(TokenSet.open(tokens_artifact(done, "dev")).texts())
    small = done.model_copy(update={"export": ExportConfig(bank_codec="int8", bank_texts=False)})
    assert [stage.name for stage in pipeline.missing_stages(small)] == ["export"]
    pipeline.run(small)
    assert pipeline.missing_stages(small) == []
    assert [stage.name for stage in pipeline.missing_stages(done)] == ["export"]
    assert (folder / "bank" / "states-0-0.safetensors").stat().st_size < 0.7 * whole
    assert not (folder / "bm25s_lookup.py").exists()
    near = RefBertPipeline(folder, device="cpu")(TokenSet.open(tokens_artifact(done, "dev")).texts())
    for one, two in zip(answers, near, strict=True):
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=0.02)
    pipeline.run(done)


def test_a_fault_leaves_the_folder_that_stands(done: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export.export_folder(done)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def fail(*_: object) -> str:
        raise RuntimeError("pulled the plug")

    monkeypatch.setattr(export, "card", fail)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        export.run(done)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not list(done.run.dir.glob(".export*"))


def test_a_memory_alone_needs_no_bank(tmp_path: Path) -> None:
    """From training, by ZeRO 3, to the answers of the exported folder."""
    alone = ("references.count=0", "references.retriever=none", "references.memory=3", "engine.zero_stage=3")
    exp = tiny_experiment(tmp_path, "corpus=null", "distill.prediction.learning_rate=0.02", *QUICK, *alone)
    pipeline.run(exp)
    export.run(exp)
    folder = export.export_folder(exp)
    assert not (folder / "bank").exists() and not (folder / "bm25s_lookup.py").exists()
    card = (folder / "README.md").read_text()
    assert "# RefBERT student" in card and "0 references and 3 learned states an input." in card
    assert "| RefBERT, 3 learned states |" in card
    student = load_classifier(model_folder(exp, "prediction-refbert")).eval()
    start = new_classifier(exp, "refbert", model_folder(exp, "intermediate-refbert"), 2)
    memory, before = (model.bert.encoder.layer[0].attention.self.memory.states for model in (student, start))
    assert (memory - before).abs().max() > 1e-3, "it learns"
    dev = TokenSet.open(tokens_artifact(exp, "dev"))
    logits = student_forward(student, Setting(exp, "task", CPU), "refbert", "dev", dev)(np.arange(len(dev)))
    found = [answer["probabilities"] for answer in RefBertPipeline(folder, device="cpu")(dev.texts())]
    np.testing.assert_allclose(found, logits.softmax(-1).numpy(), atol=1e-5)


def test_without_a_task_the_encoder_is_exported(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "task=null", "distill.general.steps=1", *QUICK[:1])
    pipeline.run(exp)
    folder = export.export_folder(exp)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["RefBertModel"] and not (folder / "bank").exists()
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 48
