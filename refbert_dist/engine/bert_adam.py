"""BERT's Adam, as TinyBERT's code has it, for stage 0."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from refbert_dist.engine.guarded_adamw import GuardedAdamW

EPSILON = 1e-6


class BertAdam(GuardedAdamW):
    """Adam that does not correct the bias of its moments, and clips the gradient of each tensor for itself.

    So its first steps are larger: the moments begin at 0, the first a tenth, the root of the second a thirtieth of what
    it is to become.
    """

    def __init__(self, params: Any, lr: float, largest_norm: float) -> None:
        """``largest_norm`` is that of a tensor; 0 does not clip."""
        super().__init__(params, lr, 0.0)
        self._largest_of_each = largest_norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As that of :class:`GuardedAdamW`; waits for the device, which counts the steps."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        if self._largest_of_each:
            for gradient, norm in zip(gradients, norms, strict=True):
                gradient.mul_((self._largest_of_each / (norm + 1e-6)).clamp(max=1.0))
        with self._uncorrected():
            result = super().step(closure)
        self.norm = torch.linalg.vector_norm(torch.stack(norms))
        return result

    @contextlib.contextmanager
    def _uncorrected(self) -> Iterator[None]:
        """Inside, rate, epsilon and decay are such that torch's corrections cancel out."""
        given = [(group["lr"], group["weight_decay"]) for group in self.param_groups]
        state = next(iter(self.state.values()), None)
        step = 1 + (int(state["step"]) if state else 0)
        for group, (rate, decay) in zip(self.param_groups, given, strict=True):
            first, second = group["betas"]
            root = math.sqrt(1 - second**step)
            factor = (1 - first**step) / root
            group.update(lr=rate * factor, eps=EPSILON / root, weight_decay=decay / factor)
        try:
            yield
        finally:
            for group, (rate, decay) in zip(self.param_groups, given, strict=True):
                group.update(lr=rate, weight_decay=decay)
