"""Distillation losses, as sums.

Every function returns a sum over samples or tokens and states its denominator, so that the caller divides by the
counts of the whole batch, over all processes: the loss is then the same however the batch is cut into micro-batches.
``mask`` ``[B, S]`` is 1 (or True) for real tokens; what lies elsewhere has no influence, not even as NaN, unless a
function says so. Sixteen-bit inputs are computed in 32 bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Triple = tuple[Tensor, Tensor, Tensor]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of states, meaned over width; denominator: real tokens.

    Both are ``[B, S, T]``, the student already projected to the teacher's width (TinyBERT, arXiv 1909.10351, equations
    8 and 9).
    """
    difference = (_wide(student) - _wide(teacher)).masked_fill(~mask.bool()[..., None], 0.0)
    return difference.square().mean(dim=-1).sum()


def score_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of pre-softmax scores, meaned over heads; denominator: sum of squared lengths.

    Both are ``[B, h, S, S]``; pairs of a real query and a real key count (TinyBERT, equation 7).
    """
    valid = mask.bool()
    pairs = valid[:, None, :, None] & valid[:, None, None, :]
    difference = (_wide(student) - _wide(teacher)).masked_fill(~pairs, 0.0)
    return difference.square().mean(dim=1).sum()


MASKED_SCORE = -100.0
"""Scores of this and below are taken for those of masked keys by TinyBERT's code."""


def padded_score_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of pre-softmax scores as TinyBERT's code has it; denominator: samples times squared padded length.

    As :func:`score_mse`, but all queries count, those at padding, too. On both sides scores of keys at padding are 0,
    and so is every score of -100 or below.
    """

    def kept(scores: Tensor) -> Tensor:
        return scores.masked_fill(~mask.bool()[:, None, None, :] | (scores <= MASKED_SCORE), 0.0)

    return (kept(_wide(student)) - kept(_wide(teacher))).square().mean(dim=1).sum()


def relation_divergence(student: Triple, teacher: Triple, mask: Tensor, relation_heads: int) -> Tensor:
    """Divergence of Q-Q, K-K and V-V relations, meaned over relations and heads; denominator: real tokens.

    MiniLMv2 (arXiv 2012.15828): queries, keys and values, each ``[B, h, S, d]`` with any number of heads, are cut anew
    into ``relation_heads`` heads; relation ``softmax(X X^T / sqrt(d_r))``; ``KL(teacher || student)`` of each real
    query's row. Raises ValueError when ``relation_heads`` does not divide both widths.
    """
    total = sum(
        F.kl_div(
            _log_relation(of_student, mask, relation_heads),
            _log_relation(of_teacher, mask, relation_heads),
            reduction="none",
            log_target=True,
        )
        .sum(dim=-1)
        .mean(dim=1)
        .masked_fill(~mask.bool(), 0.0)
        .sum()
        for of_student, of_teacher in zip(student, teacher, strict=True)
    )
    return torch.as_tensor(total) / len(student)


def _log_relation(states: Tensor, mask: Tensor, relation_heads: int) -> Tensor:
    """``[B, h, S, d]`` -> log relations ``[B, relation_heads, S, S]`` over real keys."""
    joined = _wide(states).transpose(1, 2).flatten(2)
    if joined.shape[-1] % relation_heads:
        raise ValueError(f"relation_heads is {relation_heads}, which does not divide the width {joined.shape[-1]}")
    valid = mask.bool()
    heads = joined.masked_fill(~valid[..., None], 0.0).view(*joined.shape[:2], relation_heads, -1).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / math.sqrt(heads.shape[-1])
    return F.log_softmax(scores.masked_fill(~valid[:, None, None, :], torch.finfo(scores.dtype).min), dim=-1)


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``-softmax(z_T / t) . log_softmax(z_S / t)`` of ``[B, C]``; denominator: samples (TinyBERT, equation 10).

    As published: no factor ``t^2``. TinyBERT's code divides by samples times classes.
    """
    target = F.softmax(_wide(teacher_logits) / temperature, dim=-1)
    return -(target * F.log_softmax(_wide(student_logits) / temperature, dim=-1)).sum()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``[B, C]`` against class numbers ``[B]``; denominator: samples."""
    return F.cross_entropy(_wide(logits), labels, reduction="sum")


def mse_regression(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared error of ``[B]`` or ``[B, 1]`` against ``[B]`` or ``[B, 1]``; denominator: samples."""
    return (_wide(predictions).reshape(-1) - _wide(targets).reshape(-1)).square().sum()
