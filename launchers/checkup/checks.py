"""What ``refbert doctor`` finds: one line for each check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    verdict: Literal["ok", "note", "MISSING"]
    """``note``: work is possible, but it is good to know."""
    name: str
    text: str
    """What was found; of what is missing, also what to change."""

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.verdict:7} {self.name:14} {self.text}"
