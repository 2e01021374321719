"""What machines do in a second. Measured with ``benchmarks/cost_model.py``, which prints how far the model is off.

For GPUs nothing could be measured: theirs are assumptions, marked as such wherever they are used. ``refbert cache
estimate`` on a GPU measures its forward pass and takes that instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from refbert_dist.costs.work import Work


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of matrix products and all else, on one device."""

    flops_s: float
    elements_s: float
    layer_s: float
    """Seconds that starting a layer takes."""

    def seconds(self, work: Work) -> float:
        """Time of one device."""
        return work.flops / self.flops_s + work.elements / self.elements_s + work.layers * self.layer_s

    def times(self, factor: float) -> Speed:
        """So many times as fast."""
        return Speed(flops_s=self.flops_s * factor, elements_s=self.elements_s * factor, layer_s=self.layer_s / factor)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU, or one core of a CPU, where passes are computed."""

    name: str
    is_gpu: bool
    basis: Literal["measured", "assumed", "probed"]
    """Measured once, on the machine that ``name`` tells; assumed; or the forward pass measured just now."""
    forward: Mapping[str, Speed]
    """By number format (``cache.precision``)."""
    training: Speed
    """In fp32, the only format of training; for forward and backward passes together."""
    parameter_s: float
    """Seconds for each trained weight and pass: its gradient is written and added."""
    optimizer_s: float
    """Seconds for each trained weight and optimizer step: clipping, AdamW."""
    pass_s: float
    """Seconds that a training pass takes beside all this."""
    reduced_bytes_s: float
    """Bytes of gradients that all processes sum up in a second."""

    def with_forward(self, precision: str, factor: float, name: str) -> Device:
        """This device, whose forward pass was measured to be ``factor`` times as fast as its class's.

        A core that is faster at that is faster at training, too; a GPU's formats have little to do with each other.
        """
        if not self.is_gpu:
            forward = {other: speed.times(factor) for other, speed in self.forward.items()}
            training = self.training.times(factor)
            return replace(self, name=name, basis="probed", forward=forward, training=training)
        forward = {**self.forward, precision: self.forward[precision].times(factor)}
        return replace(self, name=name, basis="probed", forward=forward)


@dataclass(frozen=True, kw_only=True)
class Core:
    """One core of a CPU, for what has nothing to do with matrix products."""

    name: str
    tokens_s: float
    """Tokens prepared: tokenised, cut, hashed and written."""
    encode_s: Mapping[str, float]
    """Seconds to encode a value of a teacher state, by codec; a GPU does it itself, ``pq`` apart."""
    decode_s: Mapping[str, float]
    """Seconds to read and decode a value."""
    write_bytes_s: float
    """Bytes hashed and committed, without waiting for the disk."""
    disk_bytes_s: float
    """Bytes that a process reads from or writes to a disk that nodes share: an assumption."""
    disk_total_bytes_s: float
    """Bytes that this disk gives or takes in all: an assumption."""
    sample_s: float
    """Seconds to put a sample into a batch."""


@dataclass(frozen=True)
class Rates:
    """What a plan is computed with."""

    device: Device
    core: Core


CORE = Core(
    name="a core of an AMD EPYC with AVX-512",
    tokens_s=810e3,
    encode_s={"fp16": 1.9e-9, "int8": 2.6e-9, "int4": 3.4e-9, "pq": 65e-9},
    decode_s={"fp16": 1.3e-9, "int8": 0.32e-9, "int4": 0.47e-9, "pq": 0.83e-9},
    write_bytes_s=2.1e9,
    disk_bytes_s=1e9,
    disk_total_bytes_s=20e9,
    sample_s=11e-6,
)

_CPU_FORWARD = Speed(flops_s=103e9, elements_s=5.2e9, layer_s=0.31e-3)
CPU = Device(
    name=CORE.name,
    is_gpu=False,
    basis="measured",
    forward={"fp32": _CPU_FORWARD, "bf16": _CPU_FORWARD},
    training=Speed(flops_s=110e9, elements_s=1.3e9, layer_s=0.9e-3),
    parameter_s=0.54e-9,
    optimizer_s=3.6e-9,
    pass_s=0.9e-3,
    reduced_bytes_s=1e9,
)

GPU = Device(
    name="GPU of the A100 class",
    is_gpu=True,
    basis="assumed",
    # Two fifths of the 312 TFLOP/s that an A100 has in bf16, two thirds of its 19.5 in fp32; elements by 1.5 TB/s of
    # memory, each read and written.
    forward={
        "bf16": Speed(flops_s=125e12, elements_s=350e9, layer_s=0.2e-3),
        "fp32": Speed(flops_s=13e12, elements_s=180e9, layer_s=0.2e-3),
    },
    training=Speed(flops_s=13e12, elements_s=120e9, layer_s=1e-3),
    parameter_s=0.01e-9,
    optimizer_s=0.03e-9,
    pass_s=3e-3,
    reduced_bytes_s=20e9,
)
CORES_PER_GPU = 8
"""CPU cores that a cluster is assumed to have for each of its GPUs."""
