"""Notices a training loss that does not move."""

from __future__ import annotations

import numpy as np

JUDGED_AT = 0.25
"""Share of the steps after which a loss should have moved."""
MIN_RECORDS = 5
LEAST_FALL = 0.01
"""Relative to the first record."""


class StallWatch:
    """Judges a loss once, after the first quarter of a job, by the records seen so far.

    It has moved if the later half of them lies below the first one by more than 1 % and by more than they scatter. A
    job that is continued after its first eighth is not judged: its beginning has not been seen.
    """

    def __init__(self, steps: int) -> None:
        """``steps``: of the whole job."""
        self._due = JUDGED_AT * steps
        self._records: list[tuple[int, float]] = []
        self._judged = False

    def see(self, step: int, loss: float) -> str | None:
        """Take the record of ``step`` (from 1); returns a sentence, once, if the loss has not moved."""
        if self._judged:
            return None
        self._records.append((step, loss))
        (first_step, first), *_ = self._records
        if step < self._due or len(self._records) < MIN_RECORDS:
            return None
        self._judged = True
        later = np.array([seen for _, seen in self._records[len(self._records) // 2 :]])
        if first_step > self._due / 2 or first - later.mean() > max(LEAST_FALL * abs(first), later.std()):
            return None
        return (
            f"the loss has not moved: {first:.4g} at step {first_step} and {later.mean():.4g} on average up to step "
            f"{step}; check the learning rate, the weights of the losses and the data"
        )
