"""A masked language model: an encoder with a head that guesses masked tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from refbert_dist.errors import UserError
from refbert_dist.models.locate import resolve_model, teacher_info


class MaskedLm:
    """Guesses one token of each input; the head sees that place alone: its output is as wide as the vocabulary."""

    def __init__(self, model: Any, max_length: int, device: torch.device) -> None:
        self.model = model.eval().to(device)
        self.device = device
        self.max_length = max_length
        """Tokens of an input at most."""
        self.pad_token_id: int = model.config.pad_token_id or 0
        self._takes_token_types = getattr(model.config, "type_vocab_size", 0) > 1
        self._places: Tensor | None = None
        model.base_model.register_forward_hook(self._keep_places)

    @classmethod
    def load(cls, spec: str, field: str, device: torch.device) -> MaskedLm:
        """Load the model that ``field`` names, in fp32; raises UserError where it, or a weight of it, is missing."""
        options: dict[str, Any] = {"trust_remote_code": False, "dtype": torch.float32, "output_loading_info": True}
        try:
            model, info = AutoModelForMaskedLM.from_pretrained(resolve_model(spec, field), **options)
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{field} is '{spec}' and cannot be loaded: {reason}") from error
        if info["missing_keys"]:
            lacking = sorted(info["missing_keys"])
            raise UserError(
                f"{field} is '{spec}' but its checkpoint lacks {len(lacking)} weights of a masked language model, "
                f"'{lacking[0]}' the first; name another model, or set task.augment.candidates=glove"
            )
        return cls(model, teacher_info(spec, field).max_positions, device)

    @torch.inference_mode()
    def logits(self, inputs: dict[str, Tensor], places: Tensor) -> Tensor:
        """Scores ``[B, V]`` of all tokens at ``places [B]`` of padded inputs ``[B, S]``."""
        if not self._takes_token_types:
            inputs = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
        self._places = places.to(self.device)
        given = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        scores: Tensor = self.model(**given, return_dict=True).logits
        return scores[:, 0]

    def _keep_places(self, module: Any, args: Any, output: Any) -> Any:
        """Of the encoder's output ``[B, S, H]`` only what stands at the asked places, ``[B, 1, H]``."""
        assert self._places is not None
        states = output.last_hidden_state
        output["last_hidden_state"] = states[torch.arange(len(states), device=states.device), self._places][:, None]
        return output
