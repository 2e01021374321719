"""Variants of the layer that reads references: a gate on their scores, no normalisation, TinyBERT's classifier."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from refbert_models import Batch, assert_same, build, config
from torch import Tensor

from refbert_dist.engine.distributed import parameter_groups
from refbert_dist.models.modeling_refbert import GATE_SCALE, RefBertForSequenceClassification, RefBertModel

GATES = ("bias", "token")
CLOSED = -1e4


def gated(kind: str, start: float, **fields: Any) -> RefBertModel:
    """The weights that :func:`build` draws without a gate."""
    model = build(reference_gate=kind, reference_gate_start=start, **fields)
    plain = build(**fields)
    assert not model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", GATES)
def test_a_closed_gate_is_tinybert_and_an_open_one_the_model_without(
    batch: Batch, references: Batch, kind: str, implementation: str
) -> None:
    closed = gated(kind, CLOSED, attn_implementation=implementation)
    opened = gated(kind, 0.0, attn_implementation=implementation)
    plain = build(attn_implementation=implementation)
    valid = batch["attention_mask"].bool()
    without, with_references = plain(**batch)[0][valid], plain(**batch, **references)[0][valid]
    assert (without - with_references).abs().max() > 1e-2
    assert_same(closed(**batch, **references)[0][valid], without, atol=5e-6)
    assert_same(opened(**batch, **references)[0][valid], with_references, atol=5e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_training_starts_nearly_as_tinybert(batch: Batch, references: Batch, implementation: str) -> None:
    """By default a token of a reference weighs 1/403 of an own token that fits as well."""
    model = build(
        reference_gate="bias", attn_implementation="eager", num_hidden_layers=1, initializer_range=1e-4
    )  # all scores are alike
    weights = model(**batch, **references, output_attentions=True).attentions[0][0, :, :, :]
    assert_same(weights[..., 9:14], (weights[..., :1] * math.exp(-6.0)).expand(-1, -1, 5), atol=1e-6)
    distances = []
    for start in (-6.0, 0.0):
        found = gated("bias", start, attn_implementation=implementation)
        distances.append((found(**batch, **references)[0] - found(**batch)[0])[0].abs().mean())
    assert 0 < distances[0] < 0.1 * distances[1]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_against_plain_torch(batch: Batch, references: Batch, kind: str, normalize: bool) -> None:
    """Weights of the first sample's attention, head by head."""
    model = gated(kind, -1.0, reference_normalize=normalize, attn_implementation="eager")
    gate = model.encoder.layer[0].attention.self.reference_gate
    torch.manual_seed(2)
    for parameter in gate.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    outputs = model(**batch, **references, output_hidden_states=True, output_attentions=True)
    weights = {name.removeprefix("encoder.layer.0.attention.self."): value for name, value in model.named_parameters()}
    real = references["reference_mask"][0].bool()
    projected = references["reference_keys"][0][real] @ weights["reference_key.dense.weight"].T
    if normalize:
        projected = torch.nn.functional.layer_norm(
            projected, (24,), weights["reference_key.LayerNorm.weight"], weights["reference_key.LayerNorm.bias"], 1e-12
        )
    else:
        assert "reference_key.LayerNorm.weight" not in weights
    own = outputs.hidden_states[0][0]
    query = own @ weights["query.weight"].T + weights["query.bias"]
    key = torch.cat([own, projected]) @ weights["key.weight"].T + weights["key.bias"]
    for head in range(4):
        cut = slice(6 * head, 6 * head + 6)
        scores = query[:, cut] @ key[:, cut].T / math.sqrt(6)
        added = gate.bias[head].expand(len(projected))
        if kind == "token":
            added = added + key[9:, cut] @ gate.weight[cut] / math.sqrt(6)
        scores[:, 9:] += GATE_SCALE * added
        found = outputs.attentions[0][0, head][:, torch.cat([torch.ones(9).bool(), real.flatten()])]
        assert_same(found, scores.softmax(-1), atol=5e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", GATES)
def test_projected_or_not_masked_and_missing_references(
    batch: Batch, references: Batch, kind: str, implementation: str
) -> None:
    model = gated(kind, -0.5, reference_normalize=False, attn_implementation=implementation)
    model.encoder.layer[0].attention.self.reference_gate.bias.data += torch.linspace(-0.01, 0.01, 4)
    if kind == "token":
        model.encoder.layer[0].attention.self.reference_gate.weight.data += 0.02 * torch.randn(24)
    base = model(**batch, **references)[0]
    keys, values = model.project_references(references["reference_keys"], references["reference_values"])
    bank = {"reference_keys": keys, "reference_values": values, "reference_mask": references["reference_mask"]}
    assert_same(model(**batch, **bank, references_projected=True)[0], base)
    noisy = dict(references)
    for name in ("reference_keys", "reference_values"):
        noisy[name] = references[name].masked_fill(references["reference_mask"][..., None] == 0, 1e4)
    assert torch.equal(model(**batch, **noisy)[0], base)
    assert_same(base[2, :4], model(**batch)[0][2, :4])
    none = {name: value[:, :0] for name, value in references.items()}
    assert_same(model(**batch, **none)[0], model(**batch)[0], atol=5e-6)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("start", [-6.0, CLOSED])
@pytest.mark.parametrize("kind", GATES)
def test_half_precision_stays_finite(batch: Batch, references: Batch, kind: str, start: float, autocast: bool) -> None:
    batch["attention_mask"][2] = 0
    model = gated(kind, start) if autocast else gated(kind, start).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert model(**batch, **references)[0].isfinite().all()


def gate_gradients(model: RefBertModel, batch: Batch, references: Batch) -> list[Tensor]:
    torch.manual_seed(3)
    (model(**batch, **references)[0] * torch.randn(3, 9, 24) * batch["attention_mask"][..., None]).sum().backward()
    found = [parameter.grad for parameter in model.encoder.layer[0].attention.self.reference_gate.parameters()]
    assert all(gradient is not None for gradient in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("kind", GATES)
def test_every_head_learns_and_all_ways_of_computing_agree(batch: Batch, references: Batch, kind: str) -> None:
    eager, fused = (
        gate_gradients(gated(kind, -1.0, attn_implementation=name), batch, references) for name in ("eager", "sdpa")
    )
    assert len(eager) == {"bias": 1, "token": 2}[kind]
    for one, other in zip(eager, fused, strict=True):
        assert one.abs().min() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    still = gated(kind, -1.0, attention_probs_dropout_prob=0.5).train()
    assert not torch.equal(still(**batch, **references)[0], still(**batch, **references)[0])


@pytest.mark.parametrize("kind", GATES)
def test_weight_decay_leaves_a_gate_alone(kind: str) -> None:
    model = build(reference_gate=kind)
    decaying, exempt = ({id(p) for p in group["params"]} for group in parameter_groups(model, 0.01))
    gate = {id(parameter) for parameter in model.encoder.layer[0].attention.self.reference_gate.parameters()}
    assert gate <= exempt and not gate & decaying


@pytest.mark.parametrize("kind", GATES)
def test_save_and_load_and_a_checkpoint_without_a_gate(
    batch: Batch, references: Batch, tmp_path: Path, kind: str
) -> None:
    model = gated(kind, -1.0, reference_normalize=False)
    model.encoder.layer[0].attention.self.reference_gate.bias.data += torch.linspace(-0.01, 0.01, 4)
    model.save_pretrained(tmp_path / "gated")
    again = RefBertModel.from_pretrained(tmp_path / "gated")
    assert (again.config.reference_gate, again.config.reference_normalize) == (kind, False)
    assert torch.equal(again(**batch, **references)[0], model(**batch, **references)[0])

    build().save_pretrained(tmp_path / "plain")
    grown = RefBertModel.from_pretrained(tmp_path / "plain", config=config(reference_gate=kind))
    gate = grown.encoder.layer[0].attention.self.reference_gate
    assert torch.equal(GATE_SCALE * gate.bias, torch.full((4,), -6.0))
    assert gate.weight is None or not gate.weight.any()


def test_tinyberts_classifier_reads_what_relu_leaves(batch: Batch, references: Batch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = {"num_labels": 3, "classifier_head": "tinybert", "hidden_dropout_prob": 0.0}
    model = RefBertForSequenceClassification(config(attention_probs_dropout_prob=0.0, classifier_dropout=0.9, **fields))
    with torch.no_grad():
        pooled = model.bert(**batch, **references).pooler_output
        expected = pooled.clamp(min=0) @ model.classifier.weight.T + model.classifier.bias
        assert pooled.min() < -0.1
        for mode in (True, False):  # in training, too: there is no dropout
            assert_same(model.train(mode)(**batch, **references).logits, expected)
        model.save_pretrained(tmp_path)
        again = RefBertForSequenceClassification.from_pretrained(tmp_path)
        assert_same(again(**batch, **references).logits, expected)
