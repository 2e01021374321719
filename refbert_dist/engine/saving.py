"""Saving and continuing a training job: the loop only copies to host memory, a thread writes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from refbert_dist.config import EngineConfig
from refbert_dist.engine.checkpoint import (
    BEST,
    MODEL,
    OPTIMIZER,
    Stretch,
    Tensors,
    TrainState,
    check_fits,
    newest_checkpoint,
    read_state,
    write_checkpoint,
)
from refbert_dist.engine.distributed import of_first
from refbert_dist.engine.optimizer_state import gather_optimizer, gather_weights, optimizer_shapes, restore_optimizer
from refbert_dist.engine.world import World
from refbert_dist.errors import StoppedError


class Saver:
    """The checkpoints of one job, seen from the training loop.

    :meth:`load_weights` before the engine is made, :meth:`restore` after it, then :meth:`save` inside ``with``, which
    waits at its end for what is being written. One checkpoint is written at a time, from one copy of weights and
    moments in the first process's host memory.
    """

    def __init__(self, folder: Path, config: EngineConfig, world: World) -> None:
        self._folder = folder
        self._config = config
        self._world = world
        self._from: Path | None = None
        self._stretches: tuple[Stretch, ...] = ()
        self._weights = _HostCopy()
        self._optimizer = _HostCopy()
        self._best = _HostCopy()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def load_weights(self, module: torch.nn.Module) -> None:
        """Load the newest whole checkpoint's weights, if there is one. A collective.

        Raises UserError where it is of another version or another experiment.
        """
        self._from = of_first(newest_checkpoint(self._folder) if self._world.rank == 0 else None)
        if self._from:
            read_state(self._from)
            check_fits(self._from, module.state_dict(), optimizer_shapes(module))
            module.load_state_dict(load_file(self._from / MODEL))
            if self._world.rank == 0 and (self._from / BEST).exists():
                self._best.tensors = load_file(self._from / BEST)

    def restore(self, engine: Any) -> TrainState:
        """Give the engine the optimizer's state of the same checkpoint; returns how far the job is."""
        state = TrainState()
        if self._from:
            state, self._stretches = read_state(self._from)
            with safe_open(self._from / OPTIMIZER, "pt") as file:
                restore_optimizer(engine, self._config.zero_stage, file.get_tensor)
        here = Stretch(state.step, self._world.size, self._config.zero_stage, self._config.precision)
        self._stretches = (*(made for made in self._stretches if made.first_step < state.step), here)
        return state

    def save(self, engine: Any, state: TrainState, keep: int) -> None:
        """Copy all that a checkpoint needs, and have it written; the newest ``keep`` stay. A collective.

        Waits first for the checkpoint before, as :meth:`wait` does.
        """
        self.wait()
        gather_weights(engine, self._weights.put)
        gather_optimizer(engine, self._config.zero_stage, self._optimizer.put)
        if self._world.rank == 0:
            self._pending = self._thread.submit(
                write_checkpoint,
                self._folder,
                state,
                self._stretches,
                self._weights.tensors,
                self._optimizer.tensors,
                keep,
                self._best.tensors,
            )

    def keep_best(self, engine: Any) -> None:
        """Keep the weights as they are, from the next checkpoint on also on disk. A collective.

        Waits first for the checkpoint that is being written, whose best weights are others.
        """
        self.wait()
        gather_weights(engine, self._best.put)

    def restore_best(self, module: torch.nn.Module) -> None:
        """Give every process's module, which is whole, the weights that were kept. A collective."""
        for name, tensor in module.state_dict().items():
            if self._world.rank == 0:
                tensor.copy_(self._best.tensors[name])
            torch.distributed.broadcast(tensor, src=0)

    def check(self) -> None:
        """Raise, without waiting, what has befallen the checkpoint that was being written."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what is being written stands, or raise what has befallen it."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        self.wait()
        if kind is None or issubclass(kind, StoppedError):
            # Without this a process that has nothing to write could be gone, or be ended for another's failure, before
            # all is written.
            torch.distributed.barrier()


class _HostCopy:
    """Copies of tensors in host memory that is used again by the next copy."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}

    def put(self, name: str, tensor: torch.Tensor) -> None:
        if name not in self.tensors:
            self.tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())
        self.tensors[name].copy_(tensor)
