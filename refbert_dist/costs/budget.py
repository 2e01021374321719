"""Operations that training takes, by the formulas of :mod:`refbert_dist.costs.work`."""

from __future__ import annotations

import math

from refbert_dist.config import Experiment, SystemName
from refbert_dist.costs.extents import extents
from refbert_dist.costs.rates import Core, Device, Rates, Speed
from refbert_dist.costs.stages import Place, stage_costs

_COUNTED = Speed(flops_s=1e9, elements_s=math.inf, layer_s=0.0)
_COUNTER = Device(
    name="counter",
    is_gpu=False,
    basis="assumed",
    forward={"fp32": _COUNTED, "bf16": _COUNTED},
    training=_COUNTED,
    parameter_s=0.0,
    optimizer_s=0.0,
    pass_s=0.0,
    reduced_bytes_s=math.inf,
)
_NOTHING = dict.fromkeys(("fp16", "int8", "int4", "pq"), 0.0)
_IDLE = Core(
    name="idle",
    tokens_s=math.inf,
    encode_s=_NOTHING,
    decode_s=_NOTHING,
    write_bytes_s=math.inf,
    disk_bytes_s=math.inf,
    disk_total_bytes_s=math.inf,
    sample_s=0.0,
)
COUNTER = Place(rates=Rates(_COUNTER, _IDLE), processes=1, cores=1)
"""A device that does 10^9 operations of matrix products in a second, and all else in none: its seconds are GFLOP."""
TAUGHT = ("distill-general", "distill-task")


def training_gflop(exp: Experiment, system: SystemName | None) -> float:
    """GFLOP of matrix products in all training of a student, or with None of the teacher on the task.

    Forward and backward passes of all micro-batches with their padding, and what of the teacher runs beside the
    student; not what was cached before.
    """
    if system is None:
        return stage_costs(exp, extents(exp), COUNTER)["finetune"].device_s
    costs = stage_costs(exp.model_copy(update={"systems": (system,)}), extents(exp), COUNTER)
    return sum(costs[stage].device_s for stage in TAUGHT if stage in costs)
