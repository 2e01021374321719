"""One process of the general distillation of several experiments, one after the other, and what befalls it.

What follows ``=`` behind a folder befalls that run, several things divided by commas: ``stop:20`` asks it to end after
20 steps, ``die:20`` kills it when the checkpoint of step 20 stands, ``tear:20`` in the middle of writing that one;
``local`` and ``none`` reduce wrongly; ``poison:9`` makes the loss of sample 9 infinite.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from refbert_dist.config import load_experiment
from refbert_dist.engine import checkpoint, saving
from refbert_dist.errors import StoppedError
from refbert_dist.objectives.distill import EncoderObjective
from refbert_dist.stages import distill
from refbert_dist.tracking.quiet import quiet_libraries


def normalise_locally() -> Any:
    """The classic mistake: divide by the counts of this process's samples instead of the global batch's."""
    right = EncoderObjective.denominators

    def wrong(self: EncoderObjective, samples: Any) -> dict[str, float]:
        return {name: value * 0.5 for name, value in right(self, samples).items()}

    return mock.patch.object(EncoderObjective, "denominators", wrong)


def average_nothing() -> Any:
    """Each process follows its own gradient: the mistake of TinyBERT's published distributed mode."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    return mock.patch.object(DeepSpeedEngine, "allreduce_gradients", lambda *_, **__: None)


def stop_after(steps: int) -> Any:
    """A signal to this process after so many steps."""
    check, left = saving.Saver.check, iter(range(steps - 1, -1, -1))

    def counted(self: saving.Saver) -> None:
        check(self)
        if next(left, None) == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    return mock.patch.object(saving.Saver, "check", counted)


def die_after(step: int) -> Any:
    """Kill this process as soon as the checkpoint of ``step`` stands."""
    write = saving.write_checkpoint

    def write_and_die(folder: Path, *rest: Any) -> None:
        write(folder, *rest)
        if (folder / f"step-{step}").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    return mock.patch.object(saving, "write_checkpoint", write_and_die)


def tear(step: int) -> Any:
    """Kill this process when of the checkpoint of ``step`` only the tensors are written."""
    write = checkpoint.write_json

    def die_or_write(path: Path, value: Any) -> None:
        if value["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, value)

    return mock.patch.object(checkpoint, "write_json", die_or_write)


def poison(sample: int) -> Any:
    """A target of one sample that is not finite, in whichever process reads it."""
    right = EncoderObjective.batch

    def poisoned(self: EncoderObjective, samples: Any, device: Any) -> dict[str, Any]:
        made = right(self, samples, device)
        for targets in made["targets"].values():
            targets[(samples == sample).nonzero()[0], 0] = float("inf")
        return made

    return mock.patch.object(EncoderObjective, "batch", poisoned)


def fault(name: str) -> Any:
    kind, _, number = name.partition(":")
    plain = {"local": normalise_locally, "none": average_nothing}
    counted = {"stop": stop_after, "die": die_after, "tear": tear, "poison": poison}
    return counted[kind](int(number)) if number else plain[kind]()


def work(runs: Sequence[str]) -> None:
    """Do runs, given as ``FOLDER=FAULTS``, one after the other."""
    logging.basicConfig(level=logging.WARNING)
    quiet_libraries()
    for run in runs:
        folder, _, names = run.partition("=")
        with contextlib.ExitStack() as faults, contextlib.suppress(StoppedError):
            for name in filter(None, names.split(",")):
                faults.enter_context(fault(name))
            distill.general(load_experiment(Path(folder) / "experiment.yaml"))
