"""A few batches of the teacher on this device: how fast it is here, instead of what is known of the device's class."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import BertModel

from refbert_dist.cache.contract import stored_layers
from refbert_dist.config import Experiment
from refbert_dist.costs.lengths import Lengths
from refbert_dist.costs.rates import CORE, CPU, GPU, Device, Rates
from refbert_dist.costs.work import Work, forward, teacher_shape
from refbert_dist.engine.distributed import DTYPES, device_of
from refbert_dist.engine.world import World
from refbert_dist.models.locate import TeacherInfo, resolve_model, teacher_info
from refbert_dist.models.teacher import Teacher, bert_config

PROBE_S = 5.0
WARM_UP = 1
MOST_BATCHES = 50
CPU_BATCH_TOKENS = 4096
"""On a core a larger batch is no faster, and would take the probe long."""


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    device: Device
    """Its class, with the forward passes as fast as they were here."""
    tokens_s: float
    """Of one device; on a CPU of one core, whatever else it does at the time."""
    random_weights: bool

    @property
    def rates(self) -> Rates:
        """For a plan on this device."""
        return Rates(self.device, CORE)


def probe_teacher(exp: Experiment, lengths: Lengths) -> Probe:
    """Time forward passes of samples that are as long as the corpus's."""
    device, info = device_of(World(0, 1, 0)), teacher_info(exp.teacher.model)
    teacher = _teacher(exp.teacher.model, info)
    precision = exp.cache.precision
    teacher.to(device, DTYPES[precision])
    on_gpu = device.type == "cuda"
    budget = exp.cache.batch_tokens if on_gpu else min(exp.cache.batch_tokens, CPU_BATCH_TOKENS)
    layers = stored_layers(exp) or (info.layers,)
    random = np.random.default_rng(0)
    # Core seconds are what a core computes, not what it waits for others; they are the sum over all threads.
    clock = time.perf_counter if on_gpu else time.process_time
    work, tokens, seconds = Work(), 0, 0.0
    for number in range(WARM_UP + MOST_BATCHES):
        # A build sorts by length, so that a batch has hardly any padding.
        length = int(random.choice(len(lengths.shares), p=lengths.shares))
        samples = max(1, budget // length)
        ids = torch.from_numpy(random.integers(5, info.vocab_size, (samples, length))).to(device)
        mask = torch.ones_like(ids)
        start = clock()
        with torch.inference_mode():
            teacher(ids, mask, torch.zeros_like(ids), layers)
        if on_gpu:
            torch.cuda.synchronize()
        if number < WARM_UP:
            continue
        seconds += clock() - start
        work += forward(teacher_shape(info), ids.numel(), length)
        tokens += ids.numel()
        if seconds > PROBE_S:
            break
    known = GPU if on_gpu else CPU
    name = torch.cuda.get_device_name(device) if on_gpu else "core of this CPU"
    measured = known.with_forward(precision, known.forward[precision].seconds(work) / seconds, name)
    return Probe(measured, tokens / seconds, _is_random(exp.teacher.model))


def _is_random(spec: str) -> bool:
    return not Path(resolve_model(spec)).is_dir()


def _teacher(spec: str, info: TeacherInfo) -> Teacher:
    """The teacher; where it would have to be downloaded, a random BERT of its shape, which is as fast."""
    if not _is_random(spec):
        return Teacher.load(spec)
    return Teacher(BertModel(bert_config(info), add_pooling_layer=False)).eval()
