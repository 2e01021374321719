"""The students that an experiment can have: RefBERT, TinyBERT, and the controls that belong beside every result.

All are trained alike; they differ only in what their first layer reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SystemName = Literal[
    "refbert",
    "tinybert",
    "random",
    "shuffled",
    "same",
    "noise",
    "zeros",
    "student",
    "crossfit",
    "own",
    "label",
    "shuffled-labels",
]


@dataclass(frozen=True)
class System:
    """One kind of student."""

    label: str
    """For people; ``references`` is the number that is read for each input."""
    of_task: bool = False
    """Whether what it reads exists only where rows have labels; in the general stage it reads what RefBERT does."""
    reads_text: bool = True
    """Whether states of the references' tokens are read, and not only what is known of their labels."""


SYSTEMS: dict[SystemName, System] = {
    "tinybert": System("TinyBERT"),
    "refbert": System("RefBERT k={references}"),
    "random": System("random k={references}"),
    "shuffled": System("shuffled k={references}"),
    "same": System("same for all k={references}"),
    "noise": System("noise k={references}"),
    "zeros": System("zeros k={references}"),
    "student": System("student's own k={references}"),
    "crossfit": System("crossfit k={references}", of_task=True),
    "own": System("own states"),
    "label": System("label only k={references}", of_task=True, reads_text=False),
    "shuffled-labels": System("wrong labels k={references}", of_task=True, reads_text=False),
}
"""What each reads, and what it is a control of, is in docs/method.md."""

FOLDS = 2
"""Parts into which ``crossfit`` cuts the training rows; each has a teacher that was fine-tuned on the other."""

EXPORTED: tuple[SystemName, ...] = ("refbert", "tinybert")
"""Systems that can be shipped; the others exist to be measured."""

SYSTEM_LABELS = {"teacher": "teacher", "knn": "{references} neighbours' labels"} | {
    name: system.label for name, system in SYSTEMS.items()
}
"""Whatever results tell of, in the order of tables."""


def system_label(name: str, references: int | None, memory: int = 0) -> str:
    """A system for people, with what it reads for each input: ``RefBERT k=1``, ``RefBERT, 16 learned states``."""
    label = SYSTEM_LABELS.get(name, name)
    if memory and not references:
        label = label.removesuffix(" k={references}")
    return label.format(references=references) + (f", {memory} learned states" if memory else "")


LABEL_WIDTH = 4
"""Numbers that tell a reference's label: its classes (three at most) or score, and a 1 that marks them as such."""
