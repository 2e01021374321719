"""TinyBERT's losses (arXiv 1909.10351) between a student, with or without references, and cached or online targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from refbert_dist.cache.states import TeacherStates
from refbert_dist.config import DistillConfig
from refbert_dist.data.batching import pad_batch, pad_rows, to_device, token_batch
from refbert_dist.data.tokens import TokenSet
from refbert_dist.errors import UserError
from refbert_dist.losses import (
    cross_entropy,
    hidden_mse,
    mse_regression,
    padded_score_mse,
    relation_divergence,
    score_mse,
    soft_cross_entropy,
)
from refbert_dist.models.layer_map import layer_map
from refbert_dist.models.parts import attention_scores, queries_keys_values
from refbert_dist.models.teacher import Teacher
from refbert_dist.objectives.masking import MaskedLanguage, masked_count
from refbert_dist.references.sources import Source, encoded_by

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class LayerPlan:
    """Which student layer learns from which teacher layer, and how attention is compared."""

    mapped: tuple[int, ...]
    """Teacher layer of student layer 1, 2, ..."""
    attention: Literal["scores", "relations"]
    relation_heads: int
    """Heads that queries, keys and values are cut into for relations: the teacher's number, or the nearest below that
    divides both widths."""

    @classmethod
    def make(cls, config: DistillConfig, student: Any, teacher: Teacher) -> LayerPlan:
        """Resolve the ``auto`` settings for these shapes; ``student`` is the student's configuration."""
        same_heads = student.num_attention_heads == teacher.num_heads
        if config.attention == "scores" and not same_heads:
            raise UserError(
                f"distill.attention is 'scores' but student.heads is {student.num_attention_heads} and the teacher has "
                f"{teacher.num_heads} heads; set distill.attention=relations or student.heads={teacher.num_heads}"
            )
        scores = config.attention == "scores" or (config.attention == "auto" and same_heads)
        if config.padding == "counted" and config.weights.attention and not scores:
            raise UserError(
                f"distill.padding is 'counted', which compares attention by scores, but student.heads is "
                f"{student.num_attention_heads} and the teacher has {teacher.num_heads} heads; set "
                f"student.heads={teacher.num_heads} or distill.padding=ignored"
            )
        common = math.gcd(student.hidden_size, teacher.hidden_size)
        return cls(
            layer_map(config.layer_map, student.num_hidden_layers, teacher.num_layers),
            "scores" if scores else "relations",
            max(heads for heads in range(1, teacher.num_heads + 1) if common % heads == 0),
        )


class EncoderModule(nn.Module):
    """A student encoder, its width maps and, given a mask token, its head for masked tokens.

    Forward returns the embedding, attention, hidden and masked-language losses as sums.
    """

    def __init__(
        self, student: Any, teacher: Teacher, plan: LayerPlan, config: DistillConfig, mask_token_id: int | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.plan = plan
        self.padding_counts = config.padding == "counted"
        self.active = {name for name, weight in config.weights if weight} - {"prediction", "labels"}
        maps = 1 if config.projection == "shared" else len(plan.mapped) + 1
        if not self.active & {"embedding", "hidden"}:
            maps = 0
        width = student.config.hidden_size
        self.projections = nn.ModuleList(nn.Linear(width, teacher.hidden_size) for _ in range(maps))
        self.mlm_head = None
        if mask_token_id is None:
            self.active -= {"mlm"}
        elif "mlm" in self.active:
            self.mlm_head = MaskedLanguage(student.config, mask_token_id)
        # Kept out of the module tree: the teacher is frozen and must not reach optimizer, checkpoints or ZeRO.
        self._frozen = (teacher,)

    def project(self, level: int, hidden: Tensor) -> Tensor:
        """Student states ``[B, S, H]`` of level 0 (embeddings) to M in the teacher's width ``[B, S, T]``."""
        return self.projections[level if len(self.projections) > 1 else 0](hidden)  # type: ignore[no-any-return]

    def forward(self, inputs: dict[str, Tensor], targets: dict[int, Tensor], references: dict[str, Tensor]) -> Terms:
        """``targets``: teacher layer -> states ``[B, S, T]``."""
        (teacher,) = self._frozen
        mask = inputs["attention_mask"]
        compared = torch.ones_like(mask) if self.padding_counts else mask
        with torch.no_grad():
            targets = {0: teacher.embed(inputs["input_ids"], inputs["token_type_ids"]), **targets}
        references = encoded_by(self.student, references)
        hidden = self.student(**inputs, **references, output_hidden_states=True).hidden_states
        terms: Terms = {}
        if "embedding" in self.active:
            terms["embedding"] = hidden_mse(self.project(0, hidden[0]), targets[0], compared)
        if "hidden" in self.active:
            losses = [
                hidden_mse(self.project(level, hidden[level]), targets[layer], compared)
                for level, layer in enumerate(self.plan.mapped, start=1)
            ]
            terms["hidden"] = torch.stack(losses).sum()
        if "attention" in self.active:
            losses = [
                self._attention(level, hidden[level - 1], layer, targets[layer - 1], mask)
                for level, layer in enumerate(self.plan.mapped, start=1)
            ]
            terms["attention"] = torch.stack(losses).sum()
        if self.mlm_head is not None:
            terms["mlm"] = self.mlm_head(self.student, inputs, references)
        return terms

    def _attention(self, level: int, below: Tensor, layer: int, target_below: Tensor, mask: Tensor) -> Tensor:
        """Attention loss of one layer, from the states below it: neither side keeps attention maps."""
        (teacher,) = self._frozen
        if self.plan.attention == "scores":
            with torch.no_grad():
                wanted = attention_scores(teacher.encoder, layer, target_below)
            compare = padded_score_mse if self.padding_counts else score_mse
            return compare(attention_scores(self.student, level, below), wanted, mask)
        with torch.no_grad():
            parts = queries_keys_values(teacher.encoder, layer, target_below)
        own = queries_keys_values(self.student, level, below)
        return relation_divergence(own, parts, mask, self.plan.relation_heads)


class EncoderObjective:
    """General stage, and first phase of the task stage: the student's states against the teacher's.

    ``mask_token_id`` belongs to the general stage, where the student also learns to guess masked tokens. Where padding
    counts, samples are padded to ``length`` and the teacher runs here: what is stored has no padding.
    """

    def __init__(
        self,
        student: Any,
        teacher: Teacher,
        tokens: TokenSet,
        states: TeacherStates,
        references: Source | None,
        config: DistillConfig,
        mask_token_id: int | None = None,
        *,
        length: int | None = None,
    ) -> None:
        if config.padding == "counted" and length is None:
            raise ValueError("padding counts, so the length that all samples are padded to must be given")
        self.plan = LayerPlan.make(config, student.config, teacher)
        self.module = EncoderModule(student, teacher, self.plan, config, mask_token_id)
        self.config = config
        self.weights = self.weights_at(0.0)
        self.tokens = tokens
        self.lengths = tokens.lengths
        self.states = states
        self.references = references
        self.pad_id = teacher.pad_token_id
        self.teacher = teacher
        self.length = length if config.padding == "counted" else None
        self.target_layers = _target_layers(self.plan.mapped, self.module.active)

    def batch(self, samples: np.ndarray, device: torch.device) -> dict[str, Any]:
        """Inputs, targets of the mapped layers, references."""
        inputs = to_device(token_batch(self.tokens, samples, self.pad_id), device)
        if self.length:
            inputs = pad_batch(inputs, self.length, self.pad_id)
        return {
            "inputs": inputs,
            "targets": self._targets(samples, inputs, device) if self.target_layers else {},
            "references": self.references.of(samples) if self.references else {},
        }

    def _targets(self, samples: np.ndarray, inputs: dict[str, Tensor], device: torch.device) -> dict[int, Tensor]:
        if self.length:
            with torch.no_grad():
                states = self.teacher(**inputs, layers=self.target_layers)
            return dict(zip(self.target_layers, states, strict=True))
        found = self.states.layers(samples, self.target_layers)
        return {layer: torch.from_numpy(pad_rows(rows)).to(device) for layer, rows in found.items()}

    def weights_at(self, fraction: float) -> dict[str, float]:
        """Weights of the terms when ``fraction`` (0 to 1) of the steps are done."""
        return {name: weight for name, weight in self.config.weights.at(fraction).items() if name in self.module.active}

    def denominators(self, samples: np.ndarray) -> dict[str, float]:
        """Means over tokens; over (query, key) pairs for attention scores; over what is masked."""
        lengths = self.lengths[samples].astype(np.int64)
        compared = np.full_like(lengths, self.length) if self.length else lengths
        tokens = float(compared.sum())
        pairs = float((compared**2).sum()) if self.plan.attention == "scores" else tokens
        masked = float(masked_count(lengths).sum())
        return {"embedding": tokens, "hidden": tokens, "attention": pairs, "mlm": masked}


def _target_layers(mapped: Sequence[int], active: set[str]) -> tuple[int, ...]:
    layers: set[int] = set()
    if "hidden" in active:
        layers |= set(mapped)
    if "attention" in active:
        layers |= {layer - 1 for layer in mapped}
    return tuple(sorted(layers - {0}))


class PredictionModule(nn.Module):
    """A student with a head; forward returns the summed prediction loss, or in evaluation mode the logits."""

    def __init__(self, student: Any, temperature: float) -> None:
        super().__init__()
        self.student = student
        self.temperature = temperature

    def forward(self, inputs: dict[str, Tensor], references: dict[str, Tensor], **wanted: Tensor) -> Terms:
        """``wanted``: the teacher's ``logits [B, C]`` (classification), gold ``labels [B]`` (where they are learnt)."""
        logits = self.student(**inputs, **encoded_by(self.student, references)).logits
        if not self.training:
            return {"logits": logits}
        if "logits" not in wanted:
            return {"prediction": mse_regression(logits, wanted["labels"])}
        terms = {"prediction": soft_cross_entropy(logits, wanted["logits"], self.temperature)}
        if "labels" in wanted:
            terms["labels"] = cross_entropy(logits, wanted["labels"].long())
        return terms


class PredictionObjective:
    """Second phase of the task stage: the teacher's logits; gold scores for regression, as in TinyBERT's code."""

    def __init__(
        self,
        student: Any,
        tokens: TokenSet,
        states: TeacherStates,
        references: Source | None,
        config: DistillConfig,
        pad_id: int,
    ) -> None:
        self.module = PredictionModule(student, config.temperature)
        self.config = config
        self.regression = student.config.num_labels == 1
        self.classes = student.config.num_labels if config.prediction_mean == "samples_and_classes" else 1
        self.weights = self.weights_at(0.0)
        self.tokens = tokens
        self.lengths = tokens.lengths
        self.states = states
        self.references = references
        self.pad_id = pad_id

    def batch(self, samples: np.ndarray, device: torch.device) -> dict[str, Any]:
        """Inputs, references and what is wanted."""
        batch: dict[str, Any] = {
            "inputs": to_device(token_batch(self.tokens, samples, self.pad_id), device),
            "references": self.references.of(samples) if self.references else {},
        }
        if self.regression or "labels" in self.weights:
            assert self.tokens.labels is not None
            batch["labels"] = torch.from_numpy(self.tokens.labels[samples]).to(device)
        if not self.regression:
            batch["logits"] = torch.from_numpy(self.states.logits(samples)).to(device)
        return batch

    def weights_at(self, fraction: float) -> dict[str, float]:
        """Weights of the terms when ``fraction`` (0 to 1) of the steps are done."""
        learnt = ("prediction", "labels") if self.config.weights.labels and not self.regression else ("prediction",)
        return {name: weight for name, weight in self.config.weights.at(fraction).items() if name in learnt}

    def denominators(self, samples: np.ndarray) -> dict[str, float]:
        """The losses are means over samples; of the teacher's logits, where it is asked for, over classes, too."""
        samples_seen = float(len(samples))
        return {**dict.fromkeys(self.weights, samples_seen), "prediction": samples_seen * self.classes}
