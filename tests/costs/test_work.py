"""Counted operations against those that torch counts while the real modules run."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from refbert_dist.config import DistillConfig
from refbert_dist.costs.work import Shape, Work, forward, losses, masked_language, reading, remembering
from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertModel
from refbert_dist.models.teacher import Teacher
from refbert_dist.objectives.distill import EncoderModule, LayerPlan
from refbert_dist.objectives.masking import masked_count

SAMPLES, LENGTH = 3, 20
STUDENT = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40}
TEACHER = {"num_hidden_layers": 4, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 100}


def shape(config: dict[str, int]) -> Shape:
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        embeddings=1000 + 512 + 2,
    )


def counted(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def bert(config: dict[str, int], **more: Any) -> BertModel:
    return BertModel(
        BertConfig(vocab_size=1000, attn_implementation="eager", **config, **more), add_pooling_layer=False
    )


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 1000, (SAMPLES, LENGTH))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def test_a_forward_and_a_backward_pass() -> None:
    model, batch = bert(STUDENT), inputs()
    work = forward(shape(STUDENT), SAMPLES * LENGTH, LENGTH)
    assert work.flops == counted(lambda: model(**batch))
    assert work.with_backward().flops == counted(lambda: model(**batch).last_hidden_state.sum().backward())
    assert work.layers == work.with_backward().layers == 2


def test_weights() -> None:
    assert shape(TEACHER).parameters == sum(weight.numel() for weight in bert(TEACHER).parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_references_of_the_first_layer(tied: bool) -> None:
    count, read, width = 2, 7, 48
    config = RefBertConfig(
        vocab_size=1000,
        reference_size=width,
        reference_count=count,
        tie_reference_projections=tied,
        attn_implementation="eager",
        **STUDENT,
    )
    model, batch = RefBertModel(config, add_pooling_layer=False), inputs()
    states = torch.randn(SAMPLES, count, read, width)
    references = {"reference_keys": states, "reference_values": states}
    more = counted(lambda: model(**batch, **references)) - counted(lambda: model(**batch))
    assert reading(shape(STUDENT), width, SAMPLES * LENGTH, SAMPLES, count * read).flops == more


def test_memory_of_the_first_layer() -> None:
    batch = inputs()
    with_memory, without = (
        RefBertModel(
            RefBertConfig(
                vocab_size=1000, reference_count=0, reference_memory=size, attn_implementation="eager", **STUDENT
            ),
            add_pooling_layer=False,
        )
        for size in (7, 0)
    )
    more = counted(lambda: with_memory(**batch)) - counted(lambda: without(**batch))
    assert remembering(shape(STUDENT), SAMPLES * LENGTH, 7).flops == more


@pytest.mark.parametrize("student_heads", [4, 6])
def test_losses_with_and_without_gradients(student_heads: int) -> None:
    sizes = {**STUDENT, "num_attention_heads": student_heads}
    config = DistillConfig()
    student, teacher = bert(sizes), Teacher(bert(TEACHER)).eval()
    module = EncoderModule(student, teacher, LayerPlan.make(config, student.config, teacher), config)
    batch = inputs()
    targets = {layer: torch.randn(SAMPLES, LENGTH, 48) for layer in (1, 2, 3, 4)}
    run = forward(shape(sizes), SAMPLES * LENGTH, LENGTH)
    trained, frozen = losses(config, shape(sizes), shape(TEACHER), SAMPLES * LENGTH, LENGTH)
    found = counted(lambda: module(batch, targets, {}))
    assert run.flops + trained.flops + frozen.flops == pytest.approx(found, rel=1e-6)


def test_terms_without_weight_cost_nothing() -> None:
    config = DistillConfig.model_validate({"weights": {"attention": 0, "embedding": 0}})
    trained, frozen = losses(config, shape(STUDENT), shape(TEACHER), 60, 20)
    assert frozen == Work()
    assert trained.flops == 2 * 60 * 24 * 48 * 2


def test_masked_language() -> None:
    """What the term adds to the operations of the module."""
    config, without = (DistillConfig.model_validate({"weights": {"mlm": weight}}) for weight in (1, 0))
    student, teacher = bert(STUDENT), Teacher(bert(TEACHER)).eval()
    plan = LayerPlan.make(config, student.config, teacher)
    batch = inputs()
    targets = {layer: torch.randn(SAMPLES, LENGTH, 48) for layer in (1, 2, 3, 4)}
    modules = [EncoderModule(student, teacher, plan, given, mask_token_id=4) for given in (config, without)]
    more, less = (counted(lambda module=module: module(batch, targets, {})) for module in modules)  # type: ignore[misc]
    found = masked_language(shape(STUDENT), 1000, SAMPLES * LENGTH, LENGTH)
    assert masked_count(torch.tensor([LENGTH])) == 0.15 * LENGTH, "a length at which nothing is rounded"
    assert found.flops == pytest.approx(more - less, rel=1e-6)
