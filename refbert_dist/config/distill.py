"""Training: how long and how fast, and what a student learns from its teacher."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from refbert_dist.config.section import Fraction, NonNegative, Positive, Rate, Section
from refbert_dist.config.systems import SystemName
from refbert_dist.config.weights import LossWeights

Stage = Literal["general", "task"]
"""On the corpus, then on a task."""


class OptimConfig(Section):
    """Optimisation of one job."""

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Passes over the data; give this or ``steps``."""
    steps: Positive | None = None
    """Optimizer steps; give this or ``epochs``."""
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the steps after which training ends, on a schedule made for all of them; with a larger share the same
    run goes on from there."""
    batch_size: Positive = 32
    """Samples in one optimizer step over all processes."""
    learning_rate: Rate = 5e-5
    """Peak learning rate of AdamW."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the rate rises linearly from zero."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: fall linearly to zero, or stay."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """AdamW weight decay; biases and normalisation weights are exempt."""

    def steps_taken(self, samples: int) -> int:
        """Of all steps those until which training goes, one at least."""
        return max(1, round(self.until * self.total_steps(samples)))

    def total_steps(self, samples: int) -> int:
        """Optimizer steps over ``samples`` samples; the last batch of an epoch may be smaller."""
        if self.steps is not None:
            return self.steps
        per_epoch = math.ceil(samples / min(self.batch_size, samples))
        return max(1, round((self.epochs or 0.0) * per_epoch))

    def with_changes(self, given: dict[str, Any]) -> dict[str, Any]:
        """As for any section; a length given in one unit replaces a default in the other."""
        changed = super().with_changes(given)
        if {"epochs", "steps"} & given.keys():
            changed |= {"epochs": given.get("epochs"), "steps": given.get("steps")}
        return changed

    @model_validator(mode="after")
    def _one_length(self) -> OptimConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"epochs is {self.epochs} and steps is {self.steps}; give exactly one of the two")
        return self


class DistillConfig(Section):
    """Losses and optimisation of the students."""

    targets: Literal["cache", "online"] = "cache"
    """Read the teacher's states from the cache, or run the teacher beside the student."""
    layer_map: Literal["uniform", "last"] | tuple[Positive, ...] = "uniform"
    """Teacher layer for each student layer: evenly spread, the last ones, or an explicit list."""
    attention: Literal["auto", "scores", "relations"] = "auto"
    """Match pre-softmax scores head by head (equal head counts), or relations between queries, keys and values
    (MiniLMv2, any head counts); ``auto`` takes scores where the head counts are equal."""
    projection: Literal["shared", "per_layer"] = "shared"
    """One student-to-teacher width map for all hidden losses (TinyBERT's code), or one per layer (its paper)."""
    temperature: Rate = 1.0
    """Temperature of the soft cross-entropy."""
    padding: Literal["ignored", "counted"] = "ignored"
    """Whether padding counts in the hidden, embedding and attention losses. ``counted`` (TinyBERT's code) pads every
    sample to ``max_length`` and compares the states at padding, too; needs ``targets: online``."""
    prediction_mean: Literal["samples", "samples_and_classes"] = "samples"
    """What the soft cross-entropy is a mean over: samples, or also classes (TinyBERT's code)."""
    keep: Literal["last", "best"] = "last"
    """Which weights the task stage's second phase leaves: those of the last step, or those that scored best on dev
    (TinyBERT's code). With ``best``, scores on dev were chosen on dev; results say so."""
    evaluate_steps: Positive = 100
    """Optimizer steps between two looks at dev where the best weights are kept; the last step has one, too."""
    weights: LossWeights = LossWeights()
    """Weights of the loss terms."""
    general: OptimConfig = OptimConfig(epochs=3, batch_size=256)
    """Optimisation of the general stage (corpus, no labels)."""
    intermediate: OptimConfig = OptimConfig(epochs=20, schedule="constant")
    """Optimisation of the task stage's first phase (hidden states and attention)."""
    prediction: OptimConfig = OptimConfig(epochs=3, learning_rate=3e-5)
    """Optimisation of the task stage's second phase (logits)."""
    rate_factors: dict[SystemName, Rate] = {}  # noqa: RUF012 (pydantic copies defaults)
    """What the learning rates of both phases of the task stage are multiplied by for the systems named; for others 1. A
    table can choose these on held-out rows (docs/tables.md)."""
    seed: NonNegative | None = None
    """Seed of the task stage's students, so that many of them share teacher, general students and caches; ``null``:
    ``seed``."""

    def optim(self, phase: Literal["intermediate", "prediction"], system: SystemName) -> OptimConfig:
        """Optimisation of ``system`` in a phase of the task stage."""
        common: OptimConfig = getattr(self, phase)
        return common.model_copy(update={"learning_rate": self.rate_factor(system) * common.learning_rate})

    def rate_factor(self, system: str) -> float:
        """Of a system, or of anything else that has scores, the teacher for one."""
        return next((factor for name, factor in self.rate_factors.items() if name == system), 1.0)

    @field_validator("rate_factors")
    @classmethod
    def _without_ones(cls, given: dict[SystemName, float]) -> dict[SystemName, float]:
        """So that what changes nothing makes no other experiment."""
        return {name: factor for name, factor in given.items() if factor != 1.0}

    @model_validator(mode="after")
    def _padding_can_count(self) -> DistillConfig:
        if self.padding == "counted" and self.targets == "cache":
            raise ValueError(
                "distill.padding is 'counted' but distill.targets is 'cache', where no padding is stored; set "
                "distill.targets=online"
            )
        if self.padding == "counted" and self.attention == "relations":
            raise ValueError(
                "distill.padding is 'counted' but distill.attention is 'relations', which have no padding; set "
                "distill.attention=scores or distill.padding=ignored"
            )
        return self
