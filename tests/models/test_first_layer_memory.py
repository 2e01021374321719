"""The memory of the first layer: learned states that all inputs read, beside references or alone."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from refbert_models import Batch, R, assert_same, build, config
from torch import Tensor

from refbert_dist.models.modeling_refbert import RefBertModel

M = R
"""So that it is as long as a reference."""


def with_memory(**fields: Any) -> RefBertModel:
    """The weights that :func:`build` draws without a memory."""
    model = build(reference_memory=M, **fields)
    missing = model.load_state_dict(build(**fields).state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert {name.rpartition("self.")[2] for name in missing.missing_keys} == {
        "memory.states",
        "memory.LayerNorm.weight",
        "memory.LayerNorm.bias",
    }
    return model


def as_references(model: RefBertModel, batch: int) -> Batch:
    """The memory as one reference of every input, projected."""
    attention = model.encoder.layer[0].attention.self
    states = attention.memory().detach()
    keys, values = attention.key(states), attention.value(states)
    given = {"reference_keys": keys, "reference_values": values}
    return {name: state.detach().expand(batch, 1, -1, -1) for name, state in given.items()}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("count", [0, 2])
def test_it_is_one_more_reference_that_never_changes(
    batch: Batch, references: Batch, implementation: str, count: int
) -> None:
    model = with_memory(reference_count=count, attn_implementation=implementation)
    plain = build(attn_implementation=implementation)
    plain.load_state_dict(model.state_dict(), strict=False)
    remembered = as_references(model, 3)
    valid = batch["attention_mask"].bool()
    expected = plain(**batch, **remembered, references_projected=True)[0][valid]
    assert_same(model(**batch)[0][valid], expected, atol=5e-6)
    assert (expected - plain(**batch)[0][valid]).abs().max() > 1e-2
    if count:
        keys, values = plain.project_references(references["reference_keys"], references["reference_values"])
        both = {
            "reference_keys": torch.cat([keys, remembered["reference_keys"]], dim=1),
            "reference_values": torch.cat([values, remembered["reference_values"]], dim=1),
            "reference_mask": torch.cat([references["reference_mask"], torch.ones(3, 1, M)], dim=1),
        }
        expected = plain(**batch, **both, references_projected=True)[0][valid]
        assert_same(model(**batch, **references)[0][valid], expected, atol=5e-6)


def test_against_plain_torch(batch: Batch) -> None:
    """Weights of the first sample's attention, head by head."""
    model = with_memory(reference_count=0, attn_implementation="eager", num_hidden_layers=1)
    weights: dict[str, Tensor] = dict(model.encoder.layer[0].attention.self.named_parameters())
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    tokens = outputs.hidden_states[0][0, batch["attention_mask"][0].bool()]
    states = weights["memory.states"]
    centred = states - states.mean(-1, keepdim=True)
    states = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    read = torch.cat([tokens, states])
    query, key = (
        source @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        for name, source in (("query", tokens), ("key", read))
    )
    found = outputs.attentions[0][0]
    assert found.shape == (4, batch["input_ids"].shape[1], batch["input_ids"].shape[1] + M)
    for head in range(4):
        cut = slice(6 * head, 6 * head + 6)
        expected = torch.softmax(query[:, cut] @ key[:, cut].T / math.sqrt(6), dim=-1)
        seen = found[head, : len(tokens)]
        assert_same(seen[:, : len(tokens)], expected[:, : len(tokens)])
        assert_same(seen[:, -M:], expected[:, -M:])


@pytest.mark.parametrize("kind", ["bias", "token"])
def test_a_gate_is_of_references_alone(batch: Batch, references: Batch, kind: str) -> None:
    """A closed one leaves the memory open."""
    model = with_memory(reference_gate=kind, reference_gate_start=-1e4)
    valid = batch["attention_mask"].bool()
    assert_same(model(**batch, **references)[0][valid], model(**batch)[0][valid], atol=5e-6)


def test_it_begins_as_large_as_an_embedding_and_learns() -> None:
    model = build(reference_memory=M, reference_count=0, initializer_range=0.02).train()
    memory = model.encoder.layer[0].attention.self.memory
    assert 0 < memory.states.abs().max() < 0.1
    assert_same(memory().square().mean(-1), torch.ones(M), atol=1e-3)
    model(torch.arange(5, 25).view(2, 10))[0].square().sum().backward()
    assert memory.states.grad.abs().sum(-1).min() > 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_half_precision(batch: Batch, references: Batch, autocast: bool, given: bool) -> None:
    model = with_memory()
    read = references if given else {}
    expected = model(**batch, **read)[0]
    if not autocast:
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model(**batch, **read)[0].float()
    assert torch.isfinite(found).all()
    assert (found - expected)[batch["attention_mask"].bool()].abs().mean() < 0.05


def test_save_and_load_and_a_checkpoint_without_it(batch: Batch, references: Batch, tmp_path: Path) -> None:
    model = with_memory()
    model.save_pretrained(tmp_path / "with")
    again = RefBertModel.from_pretrained(tmp_path / "with")
    assert again.config.reference_memory == M
    assert torch.equal(again(**batch, **references)[0], model(**batch, **references)[0])

    build().save_pretrained(tmp_path / "plain")
    grown = RefBertModel.from_pretrained(tmp_path / "plain", config=config(reference_memory=M))
    assert grown.encoder.layer[0].attention.self.memory.states.std() > 0.1


def test_no_references_to_project_without_references(batch: Batch, references: Batch) -> None:
    model = build(reference_memory=M, reference_count=0)
    with pytest.raises(ValueError, match="reference_count=0"):
        model(**batch, **references)
    with pytest.raises(ValueError, match="reference_count=0"):
        model.project_references(references["reference_keys"], references["reference_values"])


def test_exports_with_dynamic_shapes(batch: Batch) -> None:
    model = build(reference_memory=M, reference_count=0)
    sizes = {0: torch.export.Dim("batch", min=2, max=16), 1: torch.export.Dim("length", min=2, max=32)}
    program = torch.export.export(model, (), batch, dynamic_shapes=dict.fromkeys(batch, sizes))
    fewer = {name: value[:2, :6] for name, value in batch.items()}
    assert_same(program.module()(**fewer).last_hidden_state[0], model(**fewer).last_hidden_state[0], atol=5e-6)
