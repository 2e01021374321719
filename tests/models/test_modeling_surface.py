"""The model as others call it: what it refuses, its losses, compiled, exported, and its file alone."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from refbert_models import Batch, K, R, T, assert_same, build, config
from torch import Tensor

from refbert_dist.models import configuration_refbert, modeling_refbert
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_keys": torch.zeros(3, R, T)}, r"reference_keys has shape \(3, 5, 20\); expected \[batch=3,"),
        ({"reference_keys": torch.zeros(2, K, R, T)}, r"expected \[batch=3, references, tokens, width=20\]"),
        ({"reference_keys": torch.zeros(3, K, R, 24)}, "width=20"),
        ({"references_projected": True}, "width=24"),
        ({"reference_values": torch.zeros(3, K, R + 1, T)}, r"reference_values has shape \(3, 2, 6, 20\)"),
        ({"reference_mask": torch.ones(3, K * R)}, r"reference_mask has shape \(3, 10\); expected \(3, 2, 5\)"),
        ({"reference_values": None}, "reference_keys and reference_values together"),
        ({"reference_keys": None, "reference_values": None}, "reference_mask alone says nothing"),
    ],
)
def test_wrong_references(batch: Batch, references: Batch, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(**batch, **{**references, **change})


def test_model_without_references_refuses_them(batch: Batch, references: Batch) -> None:
    model = build(reference_count=0)
    with pytest.raises(ValueError, match="reference_count=0, so it cannot read references"):
        model(**batch, **references)
    with pytest.raises(ValueError, match="reference_count=0, so it has no reference projections"):
        model.project_references(references["reference_keys"], references["reference_values"])


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_other_attention_is_refused(implementation: str) -> None:
    with pytest.raises((ValueError, ImportError), match="does not support"):
        build(attn_implementation=implementation)


def test_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder only"):
        build(is_decoder=True)


@pytest.mark.parametrize(
    ("labels", "num_labels", "expected"),
    [
        (torch.tensor([0, 2, 1]), 3, torch.nn.functional.cross_entropy),
        (torch.tensor([0.5, 2.0, 1.0]), 1, lambda z, y: (z.squeeze(1) - y).square().mean()),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), 2, torch.nn.functional.binary_cross_entropy_with_logits),
    ],
    ids=["classes", "regression", "several labels"],
)
def test_loss_follows_from_the_labels(
    batch: Batch, references: Batch, labels: Tensor, num_labels: int, expected: Any
) -> None:
    torch.manual_seed(0)
    model = RefBertForSequenceClassification(config(num_labels=num_labels)).eval()
    outputs = model(**batch, **references, labels=labels)
    assert_same(outputs.loss, expected(outputs.logits, labels))
    assert_same(model(**batch, **references, labels=labels, return_dict=False)[0], expected(outputs.logits, labels))
    assert model.config.problem_type is None


def test_compiles_whole_with_any_shape(batch: Batch, references: Batch) -> None:
    model = build()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="eager")
    with torch.no_grad():
        for length, count, width in ((9, 2, 5), (7, 2, 4), (9, 1, 3)):
            inputs = {name: value[:, :length] for name, value in batch.items()}
            inputs |= {name: value[:, :count, :width] for name, value in references.items()}
            found, expected = compiled(**inputs).last_hidden_state, model(**inputs).last_hidden_state
            valid = inputs["attention_mask"].bool()
            assert_same(found[valid], expected[valid], atol=5e-6)


def test_exports_with_dynamic_shapes(batch: Batch, references: Batch) -> None:
    model = build()
    samples, tokens, count, width = (torch.export.Dim(name, min=2, max=16) for name in ("b", "s", "k", "r"))
    shapes = {name: {0: samples, 1: tokens} for name in batch}
    shapes |= {name: {0: samples, 1: count, 2: width} for name in references}
    with torch.no_grad():
        program = torch.export.export(model, (), {**batch, **references}, dynamic_shapes=shapes)
        inputs = {name: value[:2, :6] for name, value in batch.items()}
        inputs |= {name: value[:2, :, :4] for name, value in references.items()}
        assert_same(program.module()(**inputs).last_hidden_state[0], model(**inputs).last_hidden_state[0], atol=5e-6)


def test_file_stands_alone(batch: Batch, references: Batch, tmp_path: Path) -> None:
    """Copies beside the weights load where this package is not installed."""
    sources = [Path(module.__file__) for module in (configuration_refbert, modeling_refbert)]
    imported = {
        name.split(".")[0]
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"torch", "transformers", "configuration_refbert"}

    torch.manual_seed(0)
    model = RefBertForSequenceClassification(config()).eval()
    folder = tmp_path / "export"
    model.save_pretrained(folder)
    for source in sources:
        shutil.copy(source, folder)
    path = folder / "config.json"
    auto_map = {
        "AutoConfig": "configuration_refbert.RefBertConfig",
        "AutoModelForSequenceClassification": "modeling_refbert.RefBertForSequenceClassification",
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))
    torch.save({**batch, **references}, tmp_path / "inputs.pt")
    code = f"""
import sys
sys.modules["refbert_dist"] = None
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({str(folder)!r}, trust_remote_code=True)
inputs = torch.load({str(tmp_path / "inputs.pt")!r}, weights_only=True)
torch.save(model(**inputs).logits.detach(), {str(tmp_path / "logits.pt")!r})
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert_same(torch.load(tmp_path / "logits.pt", weights_only=True), model(**batch, **references).logits.detach())
