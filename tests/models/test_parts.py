from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from refbert_dist.errors import UserError
from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertModel
from refbert_dist.models.parts import attention_scores, queries_keys_values
from refbert_dist.models.teacher import Teacher

MakeFolder = Callable[..., Path]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet"])
def test_softmax_of_the_scores_is_the_models_attention(
    tiny_folder: MakeFolder, batch: dict[str, torch.Tensor], model_type: str
) -> None:
    encoder = AutoModel.from_pretrained(tiny_folder(model_type), attn_implementation="eager")
    teacher = Teacher(encoder)
    with torch.no_grad():
        outputs = encoder(
            **teacher._inputs(**batch),
            output_hidden_states=True,
            output_attentions=True,
        )
        for layer in (1, 2, 3):
            scores = attention_scores(encoder, layer, outputs.hidden_states[layer - 1])
            assert scores.shape == (3, 2, 9, 9)
            masked = scores.masked_fill(~batch["attention_mask"].bool()[:, None, None, :], float("-inf"))
            expected = outputs.attentions[layer - 1]
            # Far from uniform, or the comparison would say nothing.
            assert expected.max() > 0.5
            torch.testing.assert_close(masked.softmax(-1), expected, atol=1e-5, rtol=1e-4)


def test_queries_keys_values_are_the_projections(tiny_folder: MakeFolder) -> None:
    encoder = AutoModel.from_pretrained(tiny_folder("bert"))
    hidden = torch.randn(2, 5, 16)
    attention = encoder.encoder.layer[1].attention.self
    for found, projection in zip(
        queries_keys_values(encoder, 2, hidden), (attention.query, attention.key, attention.value), strict=True
    ):
        assert found.shape == (2, 2, 5, 8)
        torch.testing.assert_close(found[:, 1], projection(hidden)[..., 8:])


def test_first_layer_of_a_student_gives_the_token_block(batch: dict[str, torch.Tensor]) -> None:
    """Of the student's first layer only token pairs are compared; references are further columns of the same scores."""
    torch.manual_seed(0)
    config = RefBertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        reference_size=12, attn_implementation="eager", initializer_range=0.5,
    )  # fmt: skip
    student = RefBertModel(config).eval()
    states = torch.randn(2, 3, 2, 5, 12)
    outputs = student(
        **batch,
        reference_keys=states[0],
        reference_values=states[1],
        output_hidden_states=True,
        output_attentions=True,
    )
    scores = attention_scores(student, 1, outputs.hidden_states[0])
    block = outputs.attentions[0][:, :, :, :9]
    masked = scores.masked_fill(~batch["attention_mask"].bool()[:, None, None, :], float("-inf"))
    torch.testing.assert_close(masked.softmax(-1), block / block.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_unknown_architecture_and_layer(tiny_folder: MakeFolder) -> None:
    other = AutoModel.from_pretrained(tiny_folder("distilbert"))
    with pytest.raises(UserError, match=r"'distilbert'.*known: bert, .*mpnet.*set distill\.weights\.attention=0"):
        attention_scores(other, 1, torch.randn(1, 4, 16))
    encoder = AutoModel.from_pretrained(tiny_folder("bert"))
    for layer in (0, 4):
        with pytest.raises(ValueError, match="layers 1 to 3"):
            queries_keys_values(encoder, layer, torch.randn(1, 4, 16))
