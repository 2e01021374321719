"""What ``refbert benchmark`` measures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from refbert_dist.config.section import NonNegative, Positive, Section

Way = Literal["eager", "compiled", "bf16", "compiled-bf16", "onnx", "onnx-int8"]


class BenchmarkConfig(Section):
    """Every length with every batch size, by every way, for every system."""

    lengths: tuple[Annotated[int, Field(ge=8)], ...] = (32, 128, 384)
    """Tokens of an input."""
    batch_sizes: tuple[Positive, ...] = (1, 8, 32)
    """Texts in one forward pass."""
    reference_counts: tuple[NonNegative, ...] = (0, 1, 4)
    """References of ``references.max_length`` tokens that RefBERT reads for each input."""
    ways: tuple[Way, ...] = ("eager",)
    """Ways to compute: by torch as it is, compiled, either in bf16; by onnxruntime on the CPU, also in int8 (dynamic
    quantisation). Ratios are to the teacher's shape by the first of them."""
    pool_texts: Positive = 10_000
    """Known texts that are looked up, or as many as ``corpus`` has."""
    rounds: Positive = 10
    """Turns that each system has; medians of the turns count."""

    @model_validator(mode="after")
    def _names_something(self) -> BenchmarkConfig:
        for name in ("lengths", "batch_sizes", "reference_counts", "ways"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"benchmark.{name} is {list(values)}; give one value at least, and none twice")
        return self
