import math

import pytest
import torch
from finished import config

from refbert_dist.diagnostics.attention import reference_mass
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification, RefBertMemory


@torch.no_grad()
def planted() -> RefBertForSequenceClassification:
    """Two heads; tokens score 0 everywhere, tokens of references log 3 in the first head and 0 in the second."""
    torch.manual_seed(0)
    student = RefBertForSequenceClassification(config(num_attention_heads=2)).eval()
    student.bert.embeddings.LayerNorm.weight.zero_()
    student.bert.embeddings.LayerNorm.bias.zero_()
    attention = student.bert.encoder.layer[0].attention.self
    for linear in (attention.query, attention.key):
        linear.weight.zero_()
        linear.bias.zero_()
    attention.key.weight.copy_(torch.eye(len(attention.key.weight)))
    attention.query.bias[0] = math.log(3) * math.sqrt(attention.attention_head_size)
    norm = attention.reference_key.LayerNorm
    norm.weight.zero_()
    norm.bias.zero_()
    norm.bias[0] = 1
    return student


def test_mass_of_a_planted_layer() -> None:
    student = planted()
    inputs = {
        "input_ids": torch.tensor([[2, 3, 4], [2, 3, 0]]),
        "token_type_ids": torch.zeros(2, 3, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    # The first row has a reference of two tokens and one of one; the second has none.
    mask = torch.tensor([[[True, True], [True, False]], [[False, False], [False, False]]])
    states = torch.randn(2, 2, 2, 32)
    given = {"reference_keys": states, "reference_values": states, "reference_mask": mask}
    mass, even = reference_mass(student, inputs, given)
    # Three tokens that score 0, and three of references: 3 * 3 / (3 + 3 * 3), and 3 / (3 + 3).
    assert mass[0].tolist() == pytest.approx([3 / 4, 1 / 2])
    assert mass[1].tolist() == pytest.approx([0, 0])
    assert even.tolist() == pytest.approx([1 / 2, 0])


def test_a_memory_is_no_reference() -> None:
    """It takes its share of the attention, though."""
    student = planted()
    attention = student.bert.encoder.layer[0].attention.self
    memory = RefBertMemory(config(num_attention_heads=2, reference_memory=2))
    memory.states.data.zero_()  # scores 0, as tokens do
    attention.memory = memory
    student.config.reference_memory = 2
    inputs = {name: torch.ones(1, 2, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    inputs["token_type_ids"] = torch.zeros(1, 2, dtype=torch.long)
    states = torch.randn(1, 1, 2, 32)
    given = {"reference_keys": states, "reference_values": states, "reference_mask": torch.ones(1, 1, 2).bool()}
    mass, even = reference_mass(student, inputs, given)
    assert mass[0].tolist() == pytest.approx([2 * 3 / (2 + 2 + 2 * 3), 1 / 3])
    assert even.tolist() == pytest.approx([1 / 3])


def test_the_model_stays_as_it_is() -> None:
    student = planted()
    before = student.config._attn_implementation
    inputs = {name: torch.ones(1, 2, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    inputs["token_type_ids"] = torch.zeros(1, 2, dtype=torch.long)
    states = torch.randn(1, 1, 1, 32)
    given = {"reference_keys": states, "reference_values": states, "reference_mask": torch.ones(1, 1, 1).bool()}
    reference_mass(student, inputs, given)
    attention = student.bert.encoder.layer[0].attention.self
    assert before == "sdpa" == attention.config._attn_implementation and attention.config is student.config
