"""Which samples of a token set serve as references."""

from __future__ import annotations

import numpy as np

RUN_SAMPLES = 1024
"""Neighbouring samples that are taken together, so that their cached states are read in long runs."""
LEAST_RUNS = 16
"""A small cap takes shorter runs: one run would hold few documents, and most of its rows would be refused."""


def pool_rows(samples: int, cap: int) -> np.ndarray:
    """Sample numbers of the pool, int64 ``[P]``, ascending: all, or whole runs spread evenly, ``cap`` at most."""
    if samples <= cap:
        return np.arange(samples, dtype=np.int64)
    run = min(RUN_SAMPLES, max(1, cap // LEAST_RUNS))
    runs = cap // run
    # samples > cap >= runs * run: two starts lie at least a run apart, and the last run ends within the samples.
    starts = np.arange(runs, dtype=np.int64) * samples // runs
    return (starts[:, None] + np.arange(run)).reshape(-1)
