"""The model: what its first layer reads, and that it is BERT in everything else."""

import json
import math
from pathlib import Path

import pytest
import torch
from refbert_models import SHAPE, Batch, K, R, T, assert_same, build, config
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel

from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification, RefBertModel


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_count_zero_is_bert(batch: Batch, implementation: str) -> None:
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SHAPE, attn_implementation=implementation)).eval()
    model = build(seed=1, reference_count=0, attn_implementation=implementation)
    model.load_state_dict(bert.state_dict())
    found, expected = model(**batch), bert(**batch)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.pooler_output, expected.pooler_output)


def test_without_references_it_is_bert(batch: Batch) -> None:
    torch.manual_seed(0)
    bert = BertForSequenceClassification(BertConfig(**SHAPE, num_labels=3)).eval()
    model = RefBertForSequenceClassification(config(num_labels=3)).eval()
    result = model.load_state_dict(bert.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert {name.split(".reference_")[0] for name in result.missing_keys} == {"bert.encoder.layer.0.attention.self"}
    assert torch.equal(model(**batch).logits, bert(**batch).logits)


def test_eager_and_sdpa_agree(batch: Batch, references: Batch) -> None:
    outputs = [build(attn_implementation=name)(**batch, **references) for name in ("eager", "sdpa")]
    valid = batch["attention_mask"].bool()
    assert_same(outputs[0].last_hidden_state[valid], outputs[1].last_hidden_state[valid], atol=5e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_first_layer_against_plain_torch(batch: Batch, references: Batch, tied: bool) -> None:
    """The equations of the first layer, written out for one sample and one head at a time."""
    model = build(tie_reference_projections=tied)
    weights = {name.removeprefix("encoder.layer.0."): value for name, value in model.named_parameters()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def reference(states: Tensor, role: str) -> Tensor:
        name = f"attention.self.reference_{'key' if tied else role}"
        return norm(states @ weights[f"{name}.dense.weight"].T, f"{name}.LayerNorm")

    outputs = model(**batch, **references, output_hidden_states=True)
    embedded, after_first = outputs.hidden_states[:2]
    for b in range(3):
        tokens = embedded[b, batch["attention_mask"][b].bool()]
        real = references["reference_mask"][b].bool()
        key_source = torch.cat([tokens, reference(references["reference_keys"][b][real], "key")])
        value_source = torch.cat([tokens, reference(references["reference_values"][b][real], "value")])
        query = linear(tokens, "attention.self.query")
        key, value = linear(key_source, "attention.self.key"), linear(value_source, "attention.self.value")
        heads = [
            torch.softmax(query[:, cut] @ key[:, cut].T / math.sqrt(6), dim=-1) @ value[:, cut]
            for cut in (slice(6 * h, 6 * h + 6) for h in range(4))
        ]
        attended = linear(torch.cat(heads, dim=-1), "attention.output.dense")
        attended = norm(attended + tokens, "attention.output.LayerNorm")
        inner = torch.nn.functional.gelu(linear(attended, "intermediate.dense"))
        expected = norm(linear(inner, "output.dense") + attended, "output.LayerNorm")
        assert_same(after_first[b, : len(tokens)], expected, atol=2e-6)


def test_references_matter_and_values_apart_from_keys(batch: Batch, references: Batch) -> None:
    model = build()
    base = model(**batch, **references).last_hidden_state
    for name in ("reference_keys", "reference_values"):
        changed = {**references, name: references[name].roll(1, dims=-1)}
        difference = (model(**batch, **changed).last_hidden_state - base).abs().amax((1, 2))
        assert difference[0] > 1e-3
        assert difference[1] > 1e-3
        assert difference[2] <= 1e-6


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masked_references_have_no_influence(batch: Batch, references: Batch, implementation: str) -> None:
    model = build(attn_implementation=implementation)
    base = model(**batch, **references).last_hidden_state
    masked = references["reference_mask"] == 0
    noisy = {**references}
    for name in ("reference_keys", "reference_values"):
        noisy[name] = references[name].masked_fill(masked[..., None], 1e4)
    assert torch.equal(model(**batch, **noisy).last_hidden_state, base)
    # The third sample has no reference at all.
    assert_same(base[2, :4], model(**batch).last_hidden_state[2, :4])


def test_ragged_references_equal_one_sample_at_a_time(batch: Batch, references: Batch) -> None:
    model = build()
    together = model(**batch, **references).last_hidden_state
    for b, (length, used) in enumerate([(9, (2, 5)), (6, (1, 4))]):
        alone = model(
            **{name: value[b : b + 1, :length] for name, value in batch.items()},
            **{name: value[b : b + 1, : used[0], : used[1]] for name, value in references.items()},
        )
        assert_same(together[b, :length], alone.last_hidden_state[0], atol=5e-6)


def test_order_of_references_does_not_matter(batch: Batch, references: Batch) -> None:
    model = build()
    swapped = {name: value.flip(1) for name, value in references.items()}
    assert_same(model(**batch, **swapped)[0], model(**batch, **references)[0], atol=5e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_projected_references_agree(batch: Batch, references: Batch, tied: bool) -> None:
    torch.manual_seed(0)
    model = RefBertForSequenceClassification(config(tie_reference_projections=tied)).eval()
    keys, values = model.project_references(references["reference_keys"], references["reference_values"])
    assert keys.shape == values.shape == (3, K, R, 24)
    bank = {"reference_keys": keys, "reference_values": values, "reference_mask": references["reference_mask"]}
    found = model(**batch, **bank, references_projected=True).logits
    assert_same(found, model(**batch, **references).logits)
    # A bank is projected text by text, without the batch's axes.
    single, _ = model.project_references(references["reference_keys"][0, 1], references["reference_values"][0, 1])
    assert_same(single, keys[0, 1])


def test_half_precision_states_are_cast(batch: Batch, references: Batch) -> None:
    model = build()
    half = {name: value.half() for name, value in references.items()}
    back = {name: value.float() for name, value in half.items()}
    assert torch.equal(model(**batch, **half)[0], model(**batch, **back)[0])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_stays_finite(batch: Batch, references: Batch, implementation: str, autocast: bool) -> None:
    """Even for a sample whose tokens and references are all masked."""
    model = build(attn_implementation=implementation)
    expected = model(**batch, **references).last_hidden_state
    batch["attention_mask"][2] = 0
    if not autocast:
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model(**batch, **references).last_hidden_state
    assert found.isfinite().all()
    assert_same(found[0].float(), expected[0], atol=0.15)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_batch_in_which_nothing_was_found(batch: Batch, references: Batch, implementation: str) -> None:
    """Zero references are a valid count, in mixed precision and with an empty input, too."""
    model = build(attn_implementation=implementation)
    none = {name: value[:, :0] for name, value in references.items()}
    assert_same(model(**batch, **none).last_hidden_state, model(**batch).last_hidden_state)
    batch["attention_mask"][2] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**batch, **none).last_hidden_state.isfinite().all()


def test_attention_dropout_of_the_first_layer(batch: Batch, references: Batch) -> None:
    model = build(num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    assert torch.equal(model(**batch, **references)[0], model(**batch, **references)[0])
    model.train()
    assert not torch.equal(model(**batch, **references)[0], model(**batch, **references)[0])


def test_outputs_have_the_stated_shapes(batch: Batch, references: Batch) -> None:
    outputs = build(attn_implementation="eager")(
        **batch, **references, output_hidden_states=True, output_attentions=True
    )
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, 9, 24)] * 4
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(3, 4, 9, 9 + K * R)] + [(3, 4, 9, 9)] * 2
    assert_same(outputs.attentions[0].sum(-1), torch.ones(3, 4, 9))
    masked = references["reference_mask"].flatten(1) == 0
    assert outputs.attentions[0][:, :, :, 9:].transpose(1, 3)[masked].abs().max() == 0


def test_inputs_without_masks(batch: Batch, references: Batch) -> None:
    """No attention mask and no reference mask mean that everything is real."""
    model = build()
    ones = {"attention_mask": torch.ones_like(batch["input_ids"]), "reference_mask": torch.ones(3, K, R)}
    bare = model(batch["input_ids"], **{k: v for k, v in references.items() if k != "reference_mask"})
    assert_same(bare[0], model(batch["input_ids"], **{**references, **ones})[0])


def test_embeddings_instead_of_ids(batch: Batch, references: Batch) -> None:
    model = build()
    ids = batch.pop("input_ids")
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(
        model(inputs_embeds=embedded, **batch, **references)[0], model(input_ids=ids, **batch, **references)[0]
    )
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=embedded)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_extra_parameters(count: int, tied: bool) -> None:
    torch.manual_seed(0)
    plain = sum(p.numel() for p in BertModel(BertConfig(**SHAPE)).parameters())
    model = build(reference_count=count, tie_reference_projections=tied)
    each = T * 24 + 2 * 24
    expected = 0 if count == 0 else each if tied else 2 * each
    assert sum(p.numel() for p in model.parameters()) - plain == expected
    if count:
        projection = model.encoder.layer[0].attention.self.reference_key
        assert 0.2 < projection.dense.weight.std() < 0.4  # initializer_range
        assert torch.equal(projection.LayerNorm.weight, torch.ones(24))


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(batch: Batch, references: Batch, tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    model = RefBertForSequenceClassification(config(num_labels=3, tie_reference_projections=tied)).eval()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["model_type"], saved["reference_count"], saved["reference_size"]) == ("refbert", K, T)
    again = RefBertForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.tie_reference_projections == tied
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again(**batch, **references).logits, model(**batch, **references).logits)
    encoder = RefBertModel.from_pretrained(tmp_path)
    assert torch.equal(encoder(**batch, **references)[0], model.bert(**batch, **references)[0])


def gradients(model: RefBertModel, batch: Batch, references: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    weights = torch.randn(3, 9, 24)
    valid = batch["attention_mask"][..., None]
    (model(**batch, **references).last_hidden_state * weights * valid).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_the_projections_and_real_states_only(batch: Batch, references: Batch) -> None:
    model = build()
    for name in ("reference_keys", "reference_values"):
        references[name].requires_grad_()
    found = gradients(model, batch, references)
    for name in ("reference_key.dense.weight", "reference_value.dense.weight", "reference_value.LayerNorm.bias"):
        assert found[f"encoder.layer.0.attention.self.{name}"].abs().max() > 1e-4
    real = references["reference_mask"].bool()
    for name in ("reference_keys", "reference_values"):
        grad = references[name].grad
        assert grad is not None
        assert grad[real].abs().amax(-1).min() > 0
        assert grad[~real].abs().max() == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(batch: Batch, references: Batch, reentrant: bool) -> None:
    model = build(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    plain = gradients(model, batch, references)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients(model, batch, references)
    assert plain.keys() == again.keys()
    assert any("reference_value" in name for name in plain)
    for name in plain:
        assert_same(again[name], plain[name])
