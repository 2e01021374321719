"""The teacher: any BERT-like encoder, with or without a classifier, behind one small surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig

from refbert_dist.errors import UserError
from refbert_dist.models.locate import TeacherInfo, resolve_model
from refbert_dist.models.parts import EXACT

HEAD = "classifier_head"
"""Field of a model's configuration; students have it, too. Other readers of a fine-tuned teacher do not know it."""


class Teacher(nn.Module):
    """An encoder, or a sequence classifier whose encoder is ``encoder``. Shapes: T is the teacher's width."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        config: Any = model.config
        self.has_classifier = self.encoder is not model
        if self.has_classifier and getattr(config, HEAD, "bert") == "tinybert":
            # BERT's classifier reads the pooled output through this place.
            self.model.dropout = nn.ReLU()
        self.hidden_size: int = config.hidden_size
        self.samples = 0
        """Inputs that have been through its layers in this process, whatever for."""
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.pad_token_id: int = config.pad_token_id or 0
        # RoBERTa has one token type, so the second sentence's would lie outside its table; MPNet has none.
        self._takes_token_types = getattr(config, "type_vocab_size", 0) > 1

    @classmethod
    def load(
        cls, spec: str, num_labels: int | None = None, problem_type: str | None = None, head: str | None = None
    ) -> Teacher:
        """Load ``teacher.model`` in fp32 and evaluation mode, with a classifier of ``num_labels`` outputs if given.

        A head that the checkpoint lacks, or has with another number of labels, is new. ``head`` is ``teacher.head``; by
        default it is the one that the checkpoint was fine-tuned with. Raises UserError when the model cannot be loaded
        or weights of its encoder are missing.
        """
        path = resolve_model(spec)
        # The dtype is stated because transformers would otherwise keep a checkpoint's half precision.
        options: dict[str, Any] = {
            "trust_remote_code": False,
            "dtype": torch.float32,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }
        auto = AutoModel
        if num_labels is not None:
            auto = AutoModelForSequenceClassification
            options |= {"num_labels": num_labels, "problem_type": problem_type}
        try:
            model, info = auto.from_pretrained(path, **options)
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"teacher.model is '{spec}' and cannot be loaded: {reason}") from error
        lacking = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        lacking = [name for name in lacking if _is_encoder_weight(model, name)]
        if lacking:
            raise UserError(
                f"teacher.model is '{spec}' but its checkpoint lacks {len(lacking)} encoder weights, '{lacking[0]}' "
                "the first; give a checkpoint that fits its config.json"
            )
        if head and head != getattr(model.config, HEAD, "bert"):
            setattr(model.config, HEAD, head)
        return cls(model).eval()

    @property
    def encoder(self) -> Any:
        """The transformers encoder: embeddings and layers."""
        return self.model.base_model

    def _inputs(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_token_types:
            inputs["token_type_ids"] = token_type_ids
        return inputs

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Embedding output ``[B, S, T]`` of ids ``[B, S]``; equals state 0 in evaluation mode.

        No layer is run, unless the architecture is not known.
        """
        embedded: Tensor
        if self.model.config.model_type not in EXACT:
            (embedded,) = self(input_ids, None, token_type_ids, (0,))
            return embedded
        inputs = self._inputs(input_ids, None, token_type_ids)
        del inputs["attention_mask"]
        embedded = self.encoder.embeddings(**inputs)
        if hasattr(self.encoder, "embeddings_project"):  # ELECTRA's embeddings can be narrower than its layers
            embedded = self.encoder.embeddings_project(embedded)
        return embedded

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        layers: Sequence[int],
        with_logits: bool = False,
    ) -> tuple[Tensor, ...]:
        """Hidden states ``[B, S, T]`` after each of ``layers`` (0: embedding output), in the order asked for.

        With ``with_logits`` the classifier's ``[B, C]`` comes last, from the same pass.
        """
        self.samples += len(input_ids)
        runner = self.model if with_logits else self.encoder
        inputs = self._inputs(input_ids, attention_mask, token_type_ids)
        outputs = runner(**inputs, output_hidden_states=True, return_dict=True)
        states = tuple(outputs.hidden_states[layer] for layer in layers)
        return (*states, outputs.logits) if with_logits else states

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        """Classifier outputs ``[B, C]``. Raises ValueError when the teacher was loaded without ``num_labels``."""
        if not self.has_classifier:
            raise ValueError("This teacher has no classifier; load it with num_labels.")
        self.samples += len(input_ids)
        outputs: Tensor = self.model(**self._inputs(input_ids, attention_mask, token_type_ids), return_dict=True).logits
        return outputs


def bert_config(info: TeacherInfo) -> BertConfig:
    """A BERT of this shape, which is as fast whatever its weights."""
    return BertConfig(
        vocab_size=info.vocab_size,
        hidden_size=info.hidden,
        num_hidden_layers=info.layers,
        num_attention_heads=info.heads,
        intermediate_size=info.intermediate,
        max_position_embeddings=info.max_positions,
        type_vocab_size=info.type_vocab_size,
    )


def _is_encoder_weight(model: Any, name: str) -> bool:
    """Whether a parameter belongs to embeddings or layers, rather than to a pooler or head that may be new."""
    is_head = model.base_model is not model and not name.startswith(f"{model.base_model_prefix}.")
    return not is_head and ".pooler." not in f".{name}"
