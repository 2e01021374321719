"""The masked-language term: which tokens are hidden from the student, and the head that guesses them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from refbert_dist.config.weights import MASKED_PERCENT
from refbert_dist.losses import cross_entropy

BY_MASK, BY_ANY = 0.8, 0.9
"""Of the chosen tokens the first share becomes the mask token, those up to the second any token; the rest stays."""

Lengths = TypeVar("Lengths", np.ndarray, Tensor)


def masked_count(lengths: Lengths) -> Lengths:
    """Tokens to guess in samples of ``lengths`` tokens: 15 % of all but the first and the last, and one at least.

    A function of the length alone, so that a batch's denominator is known before anything is drawn.
    """
    return ((MASKED_PERCENT * (lengths - 2) + 50) // 100).clip(1)


def mask_tokens(ids: Tensor, attention_mask: Tensor, mask_token_id: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Ids ``[B, S]`` as the student sees them, and where a token is to be guessed (bool).

    Draws from torch's own generator, as dropout does. The first and the last token of a sample are never chosen: they
    are special.
    """
    lengths = attention_mask.sum(dim=1, keepdim=True)
    places = torch.arange(ids.shape[1], device=ids.device)
    inner = (places >= 1) & (places < lengths - 1)
    order = torch.rand(ids.shape, device=ids.device).masked_fill(~inner, 2.0).argsort(dim=1).argsort(dim=1)
    chosen = inner & (order < masked_count(lengths))
    kind = torch.rand(ids.shape, device=ids.device)
    seen = torch.where(chosen & (kind < BY_MASK), mask_token_id, ids)
    anything = torch.randint_like(ids, vocabulary)
    return torch.where(chosen & (kind >= BY_MASK) & (kind < BY_ANY), anything, seen), chosen


class MaskedLanguage(nn.Module):
    """BERT's head for masked tokens; its output matrix is the student's word embeddings, which stay the student's."""

    def __init__(self, config: Any, mask_token_id: int) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.mask_token_id = mask_token_id

    def forward(self, student: Any, inputs: dict[str, Tensor], references: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the masked tokens, from a pass over masked ``inputs``; denominator: masked tokens."""
        ids = inputs["input_ids"]
        seen, chosen = mask_tokens(ids, inputs["attention_mask"], self.mask_token_id, len(self.bias))
        states = student(**{**inputs, "input_ids": seen}, **references).last_hidden_state[chosen]
        words = student.get_input_embeddings().weight
        return cross_entropy(nn.functional.linear(self.transform(states), words, self.bias), ids[chosen])
