"""The one training loop: teacher fine-tuning, general and task distillation all run here.

Every quantity that shapes the result is a function of (seed, step, micro-batch), never of the process: the samples, the
dropout, and the normalisation of the loss, which divides by counts over the whole global batch. So one process and
many compute the same, and a run that was stopped continues as if it had not been.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from refbert_dist.config import Experiment, OptimConfig
from refbert_dist.data.sampler import Sampler
from refbert_dist.engine.agreement import Agreement
from refbert_dist.engine.checkpoint import TrainState
from refbert_dist.engine.distributed import device_of, gradient_norm, training_engine, was_skipped
from refbert_dist.engine.heartbeat import Heartbeat
from refbert_dist.engine.memory import explain_out_of_memory, training_advice
from refbert_dist.engine.optimizer_state import release
from refbert_dist.engine.prefetch import prefetched
from refbert_dist.engine.profile import Profile
from refbert_dist.engine.saving import Saver
from refbert_dist.engine.skips import Skips, SkipWatch
from refbert_dist.engine.stop import watching_signals
from refbert_dist.engine.timing import StepTimer
from refbert_dist.engine.world import World
from refbert_dist.errors import RefusedError, StoppedError, UserError
from refbert_dist.tracking.metrics import MetricsLog
from refbert_dist.tracking.progress import Progress
from refbert_dist.tracking.stall import StallWatch

log = logging.getLogger(__name__)

WARM_UP = 6
"""Steps of each start that are not timed: in them memory is set aside, kernels are chosen, and a profile traces."""


class Objective(Protocol):
    """What a job trains: a module whose forward returns the loss terms of a micro-batch as *sums*."""

    weights: dict[str, float]
    """Of the loss terms, at the start."""
    lengths: np.ndarray
    """Tokens of each sample."""

    @property
    def module(self) -> torch.nn.Module:
        """The trained module."""

    def batch(self, samples: np.ndarray, device: torch.device) -> dict[str, Any]:
        """The module's keyword arguments for these samples."""

    def weights_at(self, fraction: float) -> dict[str, float]:
        """Weights of the loss terms after this share of the steps, 0 to 1."""

    def denominators(self, samples: np.ndarray) -> dict[str, float]:
        """For each loss term, what its sum over a whole global batch is divided by."""


class Choice(Protocol):
    """Chooses among the weights that a job passes through: those that score best are left, the first of equals."""

    steps: int
    """Between two looks; the last step has one, too."""

    def score(self, engine: Any) -> float:
        """Of the engine's weights as they are: the same on every process, whatever their number. A collective."""


@dataclass(frozen=True)
class Job:
    """Name, budget and place of one training job."""

    stage: str
    name: str
    optim: OptimConfig
    run_dir: Path
    seed: int
    """Of the order of samples and of dropout."""

    @property
    def checkpoints(self) -> Path:
        """Folder of this job's checkpoints."""
        return self.run_dir / "checkpoints" / self.name


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimizer step ``step`` (from 0): linear warm-up, then constant or linear to zero."""
    warmup = round(optim.warmup_fraction * steps)
    if step < warmup:
        return optim.learning_rate * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.learning_rate
    return optim.learning_rate * (steps - step) / max(1, steps - warmup)


def seed_micro_batch(seed: int, step: int, index: int) -> None:
    """Give the micro-batch its own random stream, whichever process computes it."""
    digest = hashlib.sha256(f"{seed}/{step}/{index}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def train(objective: Objective, job: Job, exp: Experiment, world: World, choice: Choice | None = None) -> TrainState:
    """Train ``objective.module`` in place for the job's budget, continuing from its newest complete checkpoint.

    It is left with the last weights, or with those of the ``choice``.
    """
    with explain_out_of_memory(f"training {job.name}", training_advice(exp)):
        return _train(objective, job, exp, world, choice)


def _train(objective: Objective, job: Job, exp: Experiment, world: World, choice: Choice | None) -> TrainState:
    config = exp.engine
    if len(objective.lengths) < world.size:
        raise UserError(
            f"launch.processes is {world.size} but {job.name} has {len(objective.lengths)} sample(s); "
            f"set launch.processes to at most {len(objective.lengths)}"
        )
    sampler = Sampler(objective.lengths, job.optim.batch_size, config.micro_batch_size, job.seed, config.shuffle_window)
    steps = job.optim.total_steps(len(objective.lengths))
    last = job.optim.steps_taken(len(objective.lengths))
    passes = sampler.passes(world.size)
    device = device_of(world)

    saver = Saver(job.checkpoints, config, world)
    saver.load_weights(objective.module)
    engine = training_engine(objective.module.to(device), job.optim, config, passes)
    state = saver.restore(engine)
    if state.step > last:
        raise UserError(
            f"{job.name} is to end at step {last}, but its checkpoint in run.dir is of step {state.step}; choose "
            f"another run.dir, or set distill.general.until to at least {state.step / steps:.3f}"
        )
    if state.step:
        log.info("%s continues from step %d of %d", job.name, state.step, last)

    metrics = MetricsLog(job.run_dir) if world.rank == 0 else None
    meter = _Meter(list(objective.weights), device)
    skips = SkipWatch(config.max_skipped_steps, device)
    timer = StepTimer(device, exact=config.profile)
    profile = Profile(job.run_dir / "profile", job.name, device) if config.profile and world.rank == 0 else None
    engine.train()
    micro_batches = prefetched(
        (
            micro
            for step in range(state.step, last)
            for micro in sampler.batch(step).share(world.rank, world.size, passes)
        ),
        lambda micro: (micro, objective.batch(micro.samples, device)),
        config.prefetch_batches,
    )
    first = state.step
    began = time.monotonic()
    started = began - state.seconds
    with (
        watching_signals() as signals,
        signals.deferred(),
        contextlib.closing(micro_batches),
        Progress(job.name, last, "steps", run_dir=job.run_dir, enabled=world.rank == 0) as progress,
        saver,
        Heartbeat(config.timeout_s) as heartbeat,
    ):
        progress.update(first)
        stop = Agreement(signals, first)
        stall = StallWatch(last)
        for step in range(first, last):
            heartbeat.beat()
            batch = sampler.batch(step)
            weights = objective.weights_at(step / steps)
            denominators = objective.denominators(batch.samples)
            rate = learning_rate(job.optim, step, steps)
            for group in engine.optimizer.param_groups:
                group["lr"] = rate
            tokens = int(objective.lengths[batch.samples].sum())
            with profile.step(step - first, tokens) if profile else contextlib.nullcontext():
                for micro, inputs in islice(timer.waits(micro_batches), passes):
                    seed_micro_batch(job.seed, step, micro.index)
                    with timer.part("forward"):
                        terms = engine(**inputs)
                        scaled = {name: terms[name] / denominators[name] for name in weights}
                        loss = sum(weights[name] * value for name, value in scaled.items())
                    with timer.part("backward"):
                        # DeepSpeed averages over passes and processes; the terms already are shares of the global mean.
                        share = 0.0 if micro.filler else float(passes * world.size)
                        # A loss that is not finite makes every gradient so, and the step is skipped everywhere.
                        engine.backward(loss * (share + 0.0 * loss.detach()))
                    with timer.part("update"):
                        engine.step()
                    if not micro.filler:
                        meter.add(scaled)
                    skips.saw(micro.samples, loss)
            skipped = was_skipped(engine)
            meter.end_step(skipped)
            skips.end_step(skipped)
            timer.end_step(tokens)
            if step - first + 1 == WARM_UP:
                timer.restart()
            state = replace(
                state, step=step + 1, samples=state.samples + len(batch.samples), seconds=time.monotonic() - started
            )
            progress.update(state.step)
            if choice and (state.step % choice.steps == 0 or state.step == last):
                heartbeat.beat()
                state = _chosen(choice, engine, saver, state)

            saver.check()
            stopping = stop.reached(state.step, time.monotonic() - began)
            saving = stopping or state.step == last or state.step % config.checkpoint_steps == 0
            recording = saving or state.step % exp.tracking.log_steps == 0
            if (recording or skips.due) and (found := skips.look()):
                state = replace(state, skipped=state.skipped + found.steps)
                _report(found, job, state, config.max_skipped_steps)
            if recording:
                values = meter.take(weights)
                values |= {"gradient_norm": gradient_norm(engine), "learning_rate": rate, "samples": state.samples}
                if metrics:
                    metrics.write(job.stage, job.name, state.step, values)
                progress.update(state.step, loss=values["loss"])
                if world.rank == 0 and (remark := stall.see(state.step, values["loss"])):
                    log.warning("%s: %s", job.name, remark)
                    state = replace(state, stalled=remark)
            if saving:
                saver.save(engine, state, keep=1 if state.step == last else config.keep_checkpoints)
            if stopping and state.step < last:
                raise StoppedError(f"{job.name} stopped at step {state.step} of {last}; run the same command again")
        if last - first > WARM_UP and world.rank == 0:
            log.info("%s: %s", job.name, timer)
            if profile:
                log.info("%s", profile.report(timer, config.precision))
    release(engine)
    if choice:
        saver.restore_best(objective.module)
    return state


def _chosen(choice: Choice, engine: Any, saver: Saver, state: TrainState) -> TrainState:
    """Keep the weights as they are if none before scored as well. A collective."""
    score = choice.score(engine)
    if state.best_step and not score > state.best_score:
        return state
    saver.keep_best(engine)
    return replace(state, best_step=state.step, best_score=score)


def _report(found: Skips, job: Job, state: TrainState, limit: int) -> None:
    """Warn of skipped steps; raise RefusedError if they were too many in a row."""
    if found.in_a_row >= limit:
        raise RefusedError(
            f"{job.name} was ended at step {state.step}, because it had to skip {found.in_a_row} steps in a row: "
            f"{found}; lower the learning rate {job.optim.learning_rate}, or check the data and the teacher"
        )
    if torch.distributed.get_rank() == 0:
        log.warning("%s skipped %d step(s) up to step %d: %s", job.name, found.steps, state.step, found)


class _Meter:
    """Loss terms since the last record; summed on the device, reduced over processes only when read."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.step = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.sums = torch.zeros_like(self.step)
        self.steps = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """A micro-batch's share of the step's terms."""
        self.step += torch.stack([terms[name].detach().double() for name in self.names])

    def end_step(self, skipped: torch.Tensor) -> None:
        """The step counts unless it was ``skipped``, a boolean."""
        self.sums += self.step.masked_fill(skipped, 0.0)
        self.steps += ~skipped
        self.step.zero_()

    def take(self, weights: dict[str, float]) -> dict[str, float]:
        """Mean terms and their weighted sum ``loss`` over the steps taken since the last call; NaN if none was.

        A collective.
        """
        torch.distributed.all_reduce(self.sums)
        means = dict(zip(self.names, (self.sums / self.steps).tolist(), strict=True))
        self.sums.zero_()
        self.steps.zero_()
        return {"loss": sum(weights[name] * value for name, value in means.items()), **means}
