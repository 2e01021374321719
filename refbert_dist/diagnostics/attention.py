"""How much of the first layer's attention falls on references."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


@torch.inference_mode()
def reference_mass(student: Any, inputs: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Share of attention on references, and what it would be if all that can be attended to got as much.

    Only the first layer is run, and it alone with eager attention: no other kind of attention gives its weights.

    Args:
        student: a classifier that reads references.
        inputs: ``input_ids``, ``token_type_ids`` and ``attention_mask``, each ``[B, S]``.
        given: its references, see :class:`refbert_dist.models.modeling_refbert.RefBertModel`.

    Returns:
        Means over the tokens of each sample: ``[B, h]``, and ``[B]``.
    """
    encoder = student.base_model
    first = copy.copy(encoder.encoder.layer[0].attention.self)
    first.config = copy.deepcopy(first.config)
    first.config._attn_implementation = "eager"
    mask = inputs["attention_mask"]
    embedded = encoder.embeddings(input_ids=inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
    _, weights = first(embedded, mask[:, None, None, :].bool(), **given)
    given_mask = given["reference_mask"].flatten(1)
    memory = weights.shape[-1] - mask.shape[1] - given_mask.shape[1]
    # [B, h, S, K*R] -> [B, h, S] -> [B, h]: positions of padding ask nothing.
    on_references = weights[..., mask.shape[1] + memory :].sum(-1)
    tokens, references = mask.sum(1), given_mask.sum(1)
    mass = (on_references * mask[:, None]).sum(-1) / tokens[:, None]
    return mass, references / (references + memory + tokens)
