"""How much each loss term counts: a number, or a line from one number to another."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from refbert_dist.config.section import Section, Weight

MASKED_PERCENT = 15
"""Of a sample's tokens, for the masked-language term."""


class WeightSchedule(Section):
    """A weight that goes in a line from one number to another, and stays there."""

    start: Weight
    """Weight at the first step."""
    end: Weight
    """Weight once ``over`` of the steps are done."""
    over: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of a training job's steps over which the weight goes from ``start`` to ``end`` in a line."""

    def __bool__(self) -> bool:
        """Whether the term counts at any time: a schedule is asked as a number would be."""
        return bool(self.start or self.end)

    def at(self, fraction: float) -> float:
        """Weight when ``fraction`` (0 to 1) of the steps are done."""
        return self.start + (self.end - self.start) * min(1.0, fraction / self.over)


# The tags are of the form by which the reader of pydantic's report knows the branches of a union.
TermWeight = Annotated[
    Annotated[Weight, Tag("float")] | Annotated[WeightSchedule, Tag("mapping[start, end, over]")],
    Discriminator(lambda value: "mapping[start, end, over]" if isinstance(value, dict | WeightSchedule) else "float"),
]


class LossWeights(Section):
    """Weights of the loss terms."""

    embedding: TermWeight = 1.0
    """Mean squared error between embedding outputs (TinyBERT equation 9). This and every other weight may also be
    ``{start: 1, end: 0, over: 0.5}``: in a line over that share of a job's steps, then constant."""
    attention: TermWeight = 1.0
    """Attention loss of the mapped layers (TinyBERT equation 7, or MiniLMv2 relations)."""
    hidden: TermWeight = 1.0
    """Mean squared error between hidden states of the mapped layers (TinyBERT equation 8)."""
    prediction: TermWeight = 1.0
    """Soft cross-entropy between logits (TinyBERT equation 10); task stage only."""
    labels: TermWeight = 0.0
    """Cross-entropy against the gold labels of a classification task, beside ``prediction``."""
    mlm: TermWeight = 0.0
    """Cross-entropy of masked tokens, on a second pass of the student over its masked input; general stage only."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossWeights:
        if not (self.embedding or self.attention or self.hidden):
            raise ValueError(
                "distill.weights.embedding, attention and hidden are all 0, so that the first phases have nothing to "
                "learn; set one of them above 0"
            )
        return self

    def at(self, fraction: float) -> dict[str, float]:
        """Each term's weight when ``fraction`` (0 to 1) of a job's steps are done."""
        return {name: weight.at(fraction) if isinstance(weight, WeightSchedule) else weight for name, weight in self}
