"""RefBERT as an ordinary transformers model: BERT whose first attention layer also reads a teacher's states.

This file and that of the configuration import torch and transformers only, because an exported model carries copies of
them beside its weights; hence the relative import. The abstract and first lines of the RefBERT paper (arXiv 2106.08898)
are all that could be read; the first layer is this project's reading of them. Shapes: ``B`` samples, ``S`` tokens,
``H`` student width, ``T`` teacher width, ``K`` references of a sample, ``R`` tokens of a reference, ``M`` states of the
memory, ``h`` heads.
"""

# transformers is not typed, so its classes and decorators are Any to mypy:
# mypy: allow-subclassing-any, allow-untyped-decorators

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, pad
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertPooler,
    BertPreTrainedModel,
    BertSelfAttention,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_refbert import RefBertConfig

GATE_SCALE = 50.0
"""How often a gate's weights count in a score. Adam moves every weight by about the learning rate a step, which suits
weights that begin at 0.02: at 5e-5, a bias that counts once would need 20,000 steps to change by 1."""


class RefBertReferenceProjection(nn.Module):
    """Teacher states to student width: ``LN(R P)``, or ``R P``."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.reference_size, config.hidden_size, bias=False)
        normalize = config.reference_normalize
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if normalize else None

    def forward(self, states: Tensor) -> Tensor:
        """Map ``[..., T]`` of any float type to ``[..., H]``."""
        projected: Tensor = self.dense(states.to(self.dense.weight.dtype))
        return projected if self.LayerNorm is None else self.LayerNorm(projected)


class RefBertReferenceGate(nn.Module):
    """What is added to the scores of references before the softmax: how far each head is open to them.

    ``bias`` is the head's. ``weight``, with ``reference_gate="token"``, asks every token's key as a query does, and so
    lets tokens in or keeps them out, whoever reads. Both are vectors, which weight decay leaves alone.
    """

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__()
        self.start: float = config.reference_gate_start / GATE_SCALE
        self.bias = nn.Parameter(torch.empty(config.num_attention_heads))
        self.weight = nn.Parameter(torch.empty(config.hidden_size)) if config.reference_gate == "token" else None

    def forward(self, keys: Tensor, scaling: float) -> Tensor:
        """Keys of references ``[B, h, N, H / h]`` -> what is added to their scores ``[B or 1, h, 1, N or 1]``."""
        bias = self.bias[None, :, None, None]
        if self.weight is not None:
            asked = self.weight.view(keys.shape[1], 1, -1)
            bias = bias + scaling * (keys * asked).sum(dim=-1)[:, :, None, :]
        return GATE_SCALE * bias


class RefBertMemory(nn.Module):
    """Learned states that every input reads: further keys and values that stand for no token.

    Sukhbaatar et al. (arXiv 1907.01470) call such vectors a persistent memory. They are normalised as embeddings are,
    so that small weights, which learn quickly, give states of a token's size.
    """

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__()
        self.states = nn.Parameter(torch.empty(config.reference_memory, config.hidden_size))
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self) -> Tensor:
        """The states ``[M, H]``."""
        states: Tensor = self.LayerNorm(self.states)
        return states


class RefBertSelfAttention(BertSelfAttention):
    """Self-attention of the first layer; references and memory are further keys and values, never queries."""

    def __init__(self, config: RefBertConfig, layer_idx: int = 0) -> None:
        super().__init__(config, layer_idx=layer_idx)
        reads, tied = config.reference_count > 0, config.tie_reference_projections
        self.reference_key = RefBertReferenceProjection(config) if reads else None
        # A tied projection is one module, not two names for the same tensor, which safetensors would refuse.
        self.reference_value = RefBertReferenceProjection(config) if reads and not tied else None
        self.reference_gate = RefBertReferenceGate(config) if reads and config.reference_gate != "none" else None
        self.memory = RefBertMemory(config) if config.reference_memory else None

    def project_references(self, reference_keys: Tensor, reference_values: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher states ``[..., T]`` -> this layer's keys and values ``[..., H]``, heads side by side."""
        assert self.reference_key is not None
        value_projection = self.reference_key if self.reference_value is None else self.reference_value
        return self.key(self.reference_key(reference_keys)), self.value(value_projection(reference_values))

    def _split_heads(self, states: Tensor) -> Tensor:
        """``[B, N, H]`` -> ``[B, h, N, H / h]``."""
        return states.view(*states.shape[:-1], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        reference_keys: Tensor | None = None,
        reference_values: Tensor | None = None,
        reference_mask: Tensor | None = None,
        references_projected: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``[B, S, H]`` to itself and to the references ``[B, K, R, T]`` (or ``[B, K, R, H]`` projected).

        Returns the context ``[B, S, H]`` and, with eager attention, the weights ``[B, h, S, S + M + K*R]``.
        """
        if (reference_keys is None or reference_values is None) and self.memory is None:
            plain: tuple[Tensor, Tensor | None] = super().forward(hidden_states, attention_mask, **kwargs)
            return plain
        query = self._split_heads(self.query(hidden_states))
        keys, values = [self.key(hidden_states)], [self.value(hidden_states)]
        if self.memory is not None:
            memory, batch = self.memory(), hidden_states.shape[0]
            keys.append(self.key(memory).expand(batch, -1, -1))
            values.append(self.value(memory).expand(batch, -1, -1))
        added = None
        if reference_keys is not None and reference_values is not None:
            if references_projected:
                reference_keys, reference_values = reference_keys.to(query.dtype), reference_values.to(query.dtype)
            else:
                reference_keys, reference_values = self.project_references(reference_keys, reference_values)
            keys.append(reference_keys.flatten(1, 2))
            values.append(reference_values.flatten(1, 2))
            if reference_mask is None:
                reference_mask = query.new_ones(reference_keys.shape[:3])
            if self.reference_gate is not None:
                added = self.reference_gate(self._split_heads(keys[-1]), self.scaling)
        kwargs.pop("past_key_values", None)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attend(
            self,
            query,
            self._split_heads(torch.cat(keys, dim=1)),
            self._split_heads(torch.cat(values, dim=1)),
            _widen_mask(attention_mask, self.config.reference_memory, reference_mask, query, added),
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return context.reshape(hidden_states.shape).contiguous(), weights


def _widen_mask(
    attention_mask: Tensor | None, memory: int, reference_mask: Tensor | None, query: Tensor, gate: Tensor | None
) -> Tensor:
    """Additive mask ``[B, 1, S or 1, S + M + K*R]`` from the tokens' (boolean or additive) and ``[B, K, R]``.

    ``gate`` ``[B or 1, h, 1, K*R or 1]`` is added where a reference has tokens; then there is a mask for each head.
    Additive for every attention function: eager needs it, and with boolean masks a row without any token would be NaN.
    """
    lowest = torch.finfo(query.dtype).min
    batch, _, length, _ = query.shape
    if attention_mask is None:
        tokens = query.new_zeros(batch, 1, 1, length)
    elif attention_mask.dtype == torch.bool:
        tokens = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
    else:
        # Clamped before the cast: the lowest fp32 number is -inf in bf16, and a row of -inf becomes NaN.
        tokens = attention_mask.clamp(min=lowest).to(query.dtype)
    tokens = pad(tokens.expand(batch, -1, -1, -1), (0, memory))
    if reference_mask is None:
        return tokens
    allowed = reference_mask.bool().flatten(1)[:, None, None, :]
    added = torch.zeros_like(allowed, dtype=query.dtype)
    if gate is not None:
        added = added + gate.to(query.dtype)
    references = added.masked_fill(~allowed, lowest)
    heads, queries = max(tokens.shape[1], references.shape[1]), tokens.shape[2]
    return torch.cat([part.expand(-1, heads, queries, -1) for part in (tokens, references)], dim=-1)


class RefBertEncoder(BertEncoder):
    """BERT's layers; the first one alone reads more than its tokens."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__(config)
        if config.reference_count or config.reference_memory:
            self.layer[0].attention.self = RefBertSelfAttention(config, layer_idx=0)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, references: dict[str, Any], **kwargs: Any
    ) -> Tensor:
        """Run ``[B, S, H]`` through all layers; ``references`` are keyword arguments of the first attention."""
        for index, layer in enumerate(self.layer):
            first_only = references if index == 0 else {}
            hidden_states = layer(hidden_states, attention_mask, **first_only, **kwargs)
        return hidden_states


class RefBertPreTrainedModel(BertPreTrainedModel):
    """Loading, saving and initialisation, shared by the RefBERT models."""

    config_class = RefBertConfig
    config: RefBertConfig
    # Both would need mask code of their own for keys that have no query.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_record_outputs: ClassVar = {"hidden_states": BertLayer, "attentions": BertSelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RefBertReferenceGate):
            init.constant_(module.bias, module.start)
            if module.weight is not None:
                init.zeros_(module.weight)
        elif isinstance(module, RefBertMemory):
            init.normal_(module.states, std=self.config.initializer_range)

    def project_references(self, reference_keys: Tensor, reference_values: Tensor) -> tuple[Tensor, Tensor]:
        """Turn teacher states ``[..., T]`` into the first layer's keys and values ``[..., H]``, once, for a bank.

        Pass the result back with ``references_projected=True``. Raises ValueError for a model without references.
        """
        if not self.config.reference_count:
            raise ValueError("This model was built with reference_count=0, so it has no reference projections.")
        attention: RefBertSelfAttention = self.base_model.encoder.layer[0].attention.self
        return attention.project_references(reference_keys, reference_values)


class RefBertModel(RefBertPreTrainedModel):
    """The encoder. Parameter names are BERT's, plus ``encoder.layer.0.attention.self.{memory,reference_*}``."""

    _input_embed_layer = "word_embeddings"
    _no_split_modules: ClassVar = ["BertEmbeddings", "BertLayer"]

    def __init__(self, config: RefBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        if config.is_decoder:
            raise ValueError("RefBERT is an encoder only; set is_decoder=False.")
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = RefBertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        reference_keys: Tensor | None = None,
        reference_values: Tensor | None = None,
        reference_mask: Tensor | None = None,
        references_projected: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode ``input_ids`` ``[B, S]`` (or ``inputs_embeds`` ``[B, S, H]``).

        ``reference_keys`` and ``reference_values`` ``[B, K, R, T]`` are teacher states of any float type;
        ``reference_mask`` ``[B, K, R]`` is 1 for a real token. With ``references_projected`` they are
        ``[B, K, R, H]``, from :meth:`project_references`. Without references, and without a memory, the model is plain
        BERT. Raises ValueError for shapes that do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        embedding_output = self.embeddings(
            input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids, inputs_embeds=inputs_embeds
        )
        references: dict[str, Any] = {}
        if reference_keys is not None or reference_values is not None or reference_mask is not None:
            width = self.config.hidden_size if references_projected else self.config.reference_size
            self._check_references(embedding_output.shape[0], width, reference_keys, reference_values, reference_mask)
            references = {
                "reference_keys": reference_keys,
                "reference_values": reference_values,
                "reference_mask": reference_mask,
                "references_projected": references_projected,
            }
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=embedding_output, attention_mask=attention_mask
        )
        sequence_output = self.encoder(embedding_output, attention_mask, references, **kwargs)
        pooled_output = self.pooler(sequence_output) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=sequence_output, pooler_output=pooled_output)

    def _check_references(
        self, batch: int, width: int, keys: Tensor | None, values: Tensor | None, mask: Tensor | None
    ) -> None:
        """Raise ValueError unless the references fit this model and a batch of ``batch`` samples."""
        if not self.config.reference_count:
            raise ValueError("This model was built with reference_count=0, so it cannot read references.")
        if keys is None or values is None:
            raise ValueError("Give reference_keys and reference_values together; reference_mask alone says nothing.")
        if keys.dim() != 4 or keys.shape[0] != batch or keys.shape[3] != width:
            raise ValueError(
                f"reference_keys has shape {tuple(keys.shape)}; expected [batch={batch}, references, tokens, "
                f"width={width}]."
            )
        if values.shape != keys.shape:
            raise ValueError(
                f"reference_values has shape {tuple(values.shape)} but reference_keys {tuple(keys.shape)}."
            )
        if mask is not None and mask.shape != keys.shape[:3]:
            raise ValueError(f"reference_mask has shape {tuple(mask.shape)}; expected {tuple(keys.shape[:3])}.")


class RefBertForSequenceClassification(RefBertPreTrainedModel):
    """The encoder with a classification head, or a regression head when ``num_labels`` is 1."""

    def __init__(self, config: RefBertConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels
        self.bert = RefBertModel(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.ReLU() if config.classifier_head == "tinybert" else nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        reference_keys: Tensor | None = None,
        reference_values: Tensor | None = None,
        reference_mask: Tensor | None = None,
        references_projected: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Logits ``[B, C]`` of the first token; references as in :meth:`RefBertModel.forward`.

        ``labels`` are class numbers ``[B]``, or floats ``[B]`` (regression) or ``[B, C]`` (several labels at once).
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            reference_keys=reference_keys,
            reference_values=reference_values,
            reference_mask=reference_mask,
            references_projected=references_projected,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        return SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss by the config's ``problem_type``; unset, it follows from the labels as in transformers."""
        problem = self.config.problem_type
        if problem is None:
            if self.num_labels == 1:
                problem = "regression"
            else:
                problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        if problem == "regression":
            return mse_loss(logits, labels.view_as(logits).to(logits.dtype))
        if problem == "multi_label_classification":
            return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return cross_entropy(logits, labels.view(-1))


__all__ = ["RefBertConfig", "RefBertForSequenceClassification", "RefBertModel", "RefBertPreTrainedModel"]
