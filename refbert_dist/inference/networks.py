"""What turns tokens and references into logits: the model in torch, or exported to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from refbert_dist.errors import UserError

Tokens = dict[str, np.ndarray]
"""``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 ``[B, S]``."""
Gathered = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Projected keys and values float32 ``[B, K, R, H]``, mask bool ``[B, K, R]``, as a bank gives them."""


class Network(Protocol):
    """A forward pass."""

    def __call__(self, tokens: Tokens, references: Gathered | None) -> np.ndarray:
        """Logits, float32 ``[B, C]``."""


def usable_device(name: str | None) -> torch.device:
    """The device of this name, or by default a GPU if there is one; raises :class:`UserError` when it is not here."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise UserError(
            f"device is '{name}', which torch cannot use here; use cpu, or cuda where there is a GPU"
        ) from None


class TorchNetwork:
    """The model itself, on a device; one of another kind, such as plain BERT, where no references are given."""

    def __init__(self, folder: Path, device: str | None, dtype: str, compiled: bool) -> None:
        """``dtype``: ``float32``, ``bfloat16`` or ``float16``, in which everything is computed."""
        self.device = usable_device(device)
        self.model: Any = (
            AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=getattr(torch, dtype), trust_remote_code=False
            )
            .to(self.device)
            .eval()
        )
        self._call = torch.compile(self.model, dynamic=True) if compiled else self.model

    def __call__(self, tokens: Tokens, references: Gathered | None) -> np.ndarray:
        """See :class:`Network`."""
        logits: np.ndarray = self.forward(self.inputs(tokens, references)).float().cpu().numpy()
        return logits

    def inputs(self, tokens: Tokens, references: Gathered | None) -> dict[str, Any]:
        """What the forward pass takes, on the device."""
        inputs: dict[str, Any] = {name: self._moved(array) for name, array in tokens.items()}
        if references is not None:
            keys, values, mask = map(self._moved, references)
            inputs |= {"reference_keys": keys, "reference_values": values, "reference_mask": mask}
            inputs["references_projected"] = True
        return inputs

    @torch.inference_mode()
    def forward(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Logits ``[B, C]`` on the device."""
        logits: torch.Tensor = self._call(**inputs).logits
        return logits

    def _moved(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
