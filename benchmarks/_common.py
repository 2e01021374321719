"""What the benchmarks of the training step share: data made ready, and steps of the training loop against the clock."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from refbert_dist.config import Experiment
from refbert_dist.data.sampler import GlobalBatch, Sampler
from refbert_dist.engine.distributed import training_engine
from refbert_dist.engine.loop import seed_micro_batch
from refbert_dist.engine.prefetch import prefetched
from refbert_dist.engine.processes import library_environment
from refbert_dist.objectives.distill import EncoderObjective
from refbert_dist.stages.distill import Setting
from refbert_dist.stages.students import new_encoder

Inputs = dict[str, Any]
Cut = Callable[[GlobalBatch], list[np.ndarray]]
"""A batch's samples -> those of each micro-batch."""


def as_worker() -> None:
    """Start this script anew in the environment that the workers of a run get, unless it has it."""
    wanted = library_environment(int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0)))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


@dataclass(frozen=True)
class Round:
    """Some steps, taken one after the other."""

    rate: float
    """Samples a second."""
    cpu_rate: float
    """Samples a second of processor time, all threads: disturbed less by other work, blind to what a GPU does."""
    waited: float
    """Share of the time in which no micro-batch was ready. The first one, for which a job waits once, is left out."""


@dataclass(frozen=True)
class Ratio:
    """Of rates in the same rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ours: Iterable[float], theirs: Iterable[float]) -> "Ratio":
        found = [own / other for own, other in zip(ours, theirs, strict=True)]
        return cls(statistics.median(found), min(found), max(found))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def by_length(batch: GlobalBatch) -> list[np.ndarray]:
    """As the training loop does: neighbours by length share a micro-batch."""
    return [micro.samples for micro in batch.micro_batches]


class Student:
    """A student in the general stage, which takes the training loop's steps, without checkpoints and records.

    ``cut`` forms micro-batches; ``pad`` changes the inputs of one. Like the loop, it reads ahead in the background.
    """

    def __init__(
        self, exp: Experiment, device: torch.device, cut: Cut = by_length, pad: Callable[[Inputs], Inputs] | None = None
    ) -> None:
        (system,) = exp.trained_systems()
        optim = exp.distill.general
        self.exp, self.device, self.cut, self.pad = exp, device, cut, pad
        setting = Setting(exp, "general", device)
        self.tokens = setting.tokens
        self.objective = EncoderObjective(
            new_encoder(exp, system),
            setting.teacher,
            setting.tokens,
            setting.states,
            setting.references(system, "corpus"),
            exp.distill,
        )
        self.sampler = Sampler(self.objective.lengths, optim.batch_size, exp.engine.micro_batch_size, exp.seed)
        self.passes = self.sampler.passes(1)
        self._taken = 0
        self.engine = training_engine(self.objective.module.to(device), optim, exp.engine, self.passes)
        self.engine.train()

    def _inputs(self, samples: np.ndarray) -> Inputs:
        inputs = self.objective.batch(samples, self.device)
        return self.pad(inputs) if self.pad else inputs

    def take(self, steps: int) -> Round:
        """Take the next steps. The last of an epoch may be a smaller one and is left out."""
        full = len(self.tokens) // self.sampler.batch_size
        batches = [self.sampler.batch(step % full) for step in range(self._taken, self._taken + steps)]
        self._taken += steps
        work = [(batch, index, samples) for batch in batches for index, samples in enumerate(self.cut(batch))]
        start, cpu_start = time.perf_counter(), time.process_time()
        # Nothing is read ahead beyond the round, or one way would work at the expense of the next one's time.
        ready = prefetched(work, lambda item: self._inputs(item[2]), self.exp.engine.prefetch_batches)
        waits = []
        for batch, index, _ in work:
            asked = time.perf_counter()
            inputs = next(ready)
            waits.append(time.perf_counter() - asked)
            seed_micro_batch(self.exp.seed, batch.step, index)
            terms = self.engine(**inputs)
            denominators, weights = self.objective.denominators(batch.samples), self.objective.weights
            self.engine.backward(self.passes * sum(weights[name] * terms[name] / denominators[name] for name in terms))
            self.engine.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
        ready.close()
        samples = sum(len(batch.samples) for batch in batches)
        return Round(samples / seconds, samples / cpu_s, sum(waits[1:]) / (seconds - waits[0]))
