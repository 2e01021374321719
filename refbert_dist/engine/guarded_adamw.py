"""Fused AdamW for stage 0 that clips, and that takes no step with a gradient that is not finite."""

from __future__ import annotations

from typing import Any

import torch


class GuardedAdamW(torch.optim.AdamW):
    """Clips the norm of all gradients together, and skips a step in which it is not finite.

    A skipped step leaves weights, moments and Adam's count of steps as they are. The norm that clipping needs anyway
    tells whether all gradients are finite; it and the clipping stay on the device, which is never waited for, and the
    gradients are scaled by the kernel that applies them. Every process must hold the same, reduced gradients.
    """

    def __init__(self, params: Any, lr: float, largest_norm: float) -> None:
        """``largest_norm`` 0 does not clip."""
        super().__init__(params, lr=lr, fused=True)
        self._largest_norm = largest_norm
        device = self.param_groups[0]["params"][0].device
        self.norm = torch.zeros((), device=device)
        """Of the last step's gradients, before clipping."""
        self.found_inf = torch.zeros((), device=device)
        """1 if the last step was skipped, else 0. Name and meaning are those of torch's fused optimizers, which read
        it, as they divide by ``grad_scale``."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step with the gradients as they are, or none."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(gradients)
        self.found_inf = (~torch.isfinite(self.norm)).float()
        if self._largest_norm:
            self.grad_scale = ((self.norm + 1e-6) / self._largest_norm).clamp(min=1.0)
        return super().step(closure)
