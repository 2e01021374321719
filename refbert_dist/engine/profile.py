"""``engine.profile``: where the time of a job's steps goes, and how much of the device it uses."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils import flop_counter

from refbert_dist.artifacts import write_text
from refbert_dist.engine.timing import StepTimer

log = logging.getLogger(__name__)

COUNTED = 2
"""The step, from 0, whose operations are counted."""
TRACED = range(3, 6)
"""Steps whose operations are traced one by one."""
OPERATIONS = 12
"""Kinds of operations that the report lists."""


class Profile:
    """Counts the operations of one step and traces a few, in the first process, before the steps that are timed."""

    def __init__(self, folder: Path, job: str, device: torch.device) -> None:
        """``folder`` receives ``JOB.txt``, the report, and ``JOB.trace.json``, for Perfetto or chrome://tracing."""
        self._folder = folder
        self._job = job
        self._device = device
        self._flops_token = 0.0
        self._operations = ""

    @contextlib.contextmanager
    def step(self, number: int, tokens: int) -> Iterator[None]:
        """Around step ``number``, from 0, of this start; ``tokens`` are those of all processes."""
        if number == COUNTED:
            with counting_flops() as counter:
                yield
            self._flops_token = counter.get_total_flops() / tokens
        elif number == TRACED[0]:
            self._trace = torch.profiler.profile()
            self._trace.start()
            yield
        else:
            yield
        if number == TRACED[-1]:
            self._trace.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._trace.export_chrome_trace(str(self._folder / f"{self._job}.trace.json"))
            key = f"self_{self._device.type}_time_total"
            self._operations = self._trace.key_averages().table(sort_by=key, row_limit=OPERATIONS)

    def report(self, timer: StepTimer, precision: str) -> str:
        """Write and return where the time of the timed steps went."""
        step_s = timer.seconds / timer.steps
        parts = sorted(timer.parts().items(), key=lambda item: -item[1])
        lines = [f"{self._job}: {timer.steps} steps of {1e3 * step_s:.1f} ms in the first process"]
        lines += [f"  {name:9} {part / timer.seconds:6.1%} {1e3 * part / timer.steps:9.2f} ms" for name, part in parts]
        flops = self._flops_token * timer.tokens / timer.steps
        reached = flops / step_s
        best = matrix_rate(self._device, precision)
        lines.append(
            f"  {flops / 1e9:.3g} GFLOP a step: {reached / 1e9:.1f} GFLOP/s, {reached / best:.0%} of the "
            f"{best / 1e9:.1f} GFLOP/s that a large matrix product of {precision} reaches here"
        )
        text = "\n".join(lines)
        write_text(self._folder / f"{self._job}.txt", f"{text}\n\n{self._operations}\n")
        return text


def counting_flops() -> flop_counter.FlopCounterMode:
    """torch's counter of matrix products, which does not know the CPU's fused attention by itself."""
    aten: Any = torch.ops.aten
    there: Any = flop_counter
    cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: there.sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: there.sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    return flop_counter.FlopCounterMode(display=False, custom_mapping=cpu)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product on this device: the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.ones(2, size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
