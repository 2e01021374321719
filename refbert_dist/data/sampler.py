"""Which samples each optimizer step sees, as a pure function of (seed, step): the same on any number of processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one forward and backward pass.

    ``index`` is its place in the global batch and seeds its dropout, so that it computes the same on whichever process
    it lands. A ``filler`` contributes nothing; it keeps processes in step when the micro-batches do not divide evenly.
    """

    index: int
    samples: np.ndarray
    filler: bool = False


@dataclass(frozen=True)
class GlobalBatch:
    """Samples of one optimizer step over all processes."""

    step: int
    samples: np.ndarray
    micro_batches: tuple[MicroBatch, ...]

    def share(self, rank: int, world_size: int, passes: int) -> list[MicroBatch]:
        """The ``passes`` micro-batches of one process."""
        mine = list(self.micro_batches[rank::world_size])
        filler = MicroBatch(index=len(self.micro_batches), samples=self.samples[:1], filler=True)
        return mine + [filler] * (passes - len(mine))


BLOCKS_PER_WINDOW = 8
"""Runs of consecutive samples that are shuffled among each other where the shuffle is windowed."""


class Sampler:
    """Order of the samples: a fresh permutation for each epoch, every sample once, the last batch however small.

    With a ``window``, runs of consecutive samples are put in random order and then mixed, ``window`` samples at a time:
    so what is read from a large cache at any time lies in a few places, each read to its end.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, micro_batch_size: int, seed: int, window: int | None = None
    ) -> None:
        self.lengths = lengths
        self.batch_size = min(batch_size, len(lengths))
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.window = window
        self.steps_per_epoch = math.ceil(len(lengths) / self.batch_size)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def passes(self, world_size: int) -> int:
        """Forward and backward passes of each process in one step (gradient accumulation)."""
        return math.ceil(math.ceil(self.batch_size / self.micro_batch_size) / world_size)

    def batch(self, step: int) -> GlobalBatch:
        """The batch of optimizer step ``step`` (from 0). Samples of like length share a micro-batch: less padding."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = shuffled(len(self.lengths), self.window, np.random.default_rng([self.seed, epoch]))
            self._epoch = epoch
        samples = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        samples = samples[np.argsort(self.lengths[samples], kind="stable")]
        size = self.micro_batch_size
        cuts = [samples[start : start + size] for start in range(0, len(samples), size)]
        return GlobalBatch(step, samples, tuple(MicroBatch(index, cut) for index, cut in enumerate(cuts)))


def shuffled(samples: int, window: int | None, random: np.random.Generator) -> np.ndarray:
    """A permutation of ``range(samples)``, int64; see :class:`Sampler` for the window."""
    if window is None or window >= samples:
        return random.permutation(samples)
    run = max(1, window // BLOCKS_PER_WINDOW)
    starts = random.permutation(np.arange(0, samples, run))
    windows = []
    for first in range(0, len(starts), BLOCKS_PER_WINDOW):
        mixed = starts[first : first + BLOCKS_PER_WINDOW, None] + np.arange(run)
        windows.append(random.permutation(mixed[mixed < samples]))
    return np.concatenate(windows)
