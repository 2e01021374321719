"""One rank of the general distillation of the experiment in argv[1].

argv[2] may break the reduction on purpose (``local``, ``none``), or kill the process after a checkpoint (``die:20``).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from refbert_dist.config import load_experiment
from refbert_dist.engine.checkpoint import TrainState
from refbert_dist.objectives.distill import EncoderObjective
from refbert_dist.stages import distill


def normalise_locally() -> None:
    """The classic mistake: divide by the counts of this process's samples instead of the global batch's."""
    right = EncoderObjective.denominators

    def wrong(self: EncoderObjective, samples: object) -> dict[str, float]:
        return {name: value * 0.5 for name, value in right(self, samples).items()}  # type: ignore[arg-type]

    import torch.distributed

    if torch.distributed.get_world_size() > 1:
        EncoderObjective.denominators = wrong  # type: ignore[method-assign]


def average_nothing() -> None:
    """Each process follows its own gradient: the mistake of TinyBERT's published distributed mode."""

    def nothing(*_: object, **__: object) -> None:
        return None

    from deepspeed.runtime.engine import DeepSpeedEngine

    DeepSpeedEngine.allreduce_gradients = nothing


def die_after(step: int) -> None:
    """Kill this process as soon as the checkpoint of ``step`` stands."""
    from refbert_dist.engine import loop

    save = loop.save_checkpoint

    def save_and_die(folder: Path, state: TrainState, *rest: Any) -> Path:
        saved = save(folder, state, *rest)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return saved

    loop.save_checkpoint = save_and_die  # type: ignore[assignment]


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[2].startswith("die:"):
        die_after(int(sys.argv[2].removeprefix("die:")))
    elif len(sys.argv) > 2:
        from refbert_dist.engine import distributed

        start, breaks = distributed.training_engine, {"local": normalise_locally, "none": average_nothing}[sys.argv[2]]

        def broken(*args: object, **options: object) -> object:
            breaks()
            return start(*args, **options)  # type: ignore[arg-type]

        from refbert_dist.engine import loop

        loop.training_engine = broken  # type: ignore[assignment]
    distill.general(load_experiment(Path(sys.argv[1]) / "experiment.yaml"))
