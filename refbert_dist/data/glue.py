"""The tasks: what their files look like, how they are scored, and what GLUE's test server takes (arXiv 1804.07461)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from refbert_dist.config import Split
from refbert_dist.data.looked_up import COLOURS
from refbert_dist.errors import UserError

Row = tuple[str, str | None, float | None]
"""First sentence, second sentence of a pair, label; None where there is none."""


@dataclass(frozen=True)
class Rows:
    """The rows of a split, as they lie in its source."""

    rows: list[Row]
    broken: int = 0
    """Rows that are left out because GLUE's own file has them broken."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What a task's files look like, how it is scored and how it is submitted."""

    name: str
    columns: tuple[str, ...] = ()
    """All columns of the TSV file to train on, in order; empty for a built-in task."""
    text_columns: tuple[str, ...]
    """Columns of the first and, for pairs, the second sentence."""
    label_column: str = "label"
    has_header: bool = True
    """Whether the files to train and evaluate on begin with their columns' names; test files always do."""
    hub_columns: tuple[str, ...] = ()
    """As ``text_columns``, in GLUE's data set on the hub."""
    num_labels: int = 2
    """Classes; 1 is regression."""
    label_range: tuple[float, float] = (0, 1)
    """Smallest and largest label, both allowed."""
    metrics: tuple[str, ...] = ("accuracy",)
    """GLUE's metrics of the task; the first one leads."""
    label_names: tuple[str, ...] = ()
    """What GLUE calls the classes 0, 1, ...; empty where it has no names for them."""
    labels_are_names: bool = False
    """Whether files and submissions hold these names instead of numbers."""
    phrases: bool = False
    """Whether training rows are phrases of sentences that are rows, too."""
    broken_rows: int = 0
    """Rows that a file may have broken, at most; see :class:`Rows`."""
    submission: Mapping[Split, str] = field(default_factory=dict)
    """Splits without labels, and the file of each in a submission."""
    builtin: bool = False

    @property
    def is_pair(self) -> bool:
        """True when a row has two sentences."""
        return len(self.text_columns) == 2

    @property
    def is_regression(self) -> bool:
        """True when the label is a score."""
        return self.num_labels == 1

    @property
    def allowed_labels(self) -> str:
        """For people."""
        low, high = self.label_range
        if self.labels_are_names:
            return f"one of {', '.join(self.label_names)}"
        return f"a number from {low:g} to {high:g}" if self.is_regression else f"one of 0 to {high:g}"

    def label_of(self, text: str) -> float | None:
        """The label that a cell of a file means; None where it means none."""
        return self.named(text) if self.labels_are_names else self.numbered(text)

    def named(self, text: str) -> float | None:
        """The class of this name."""
        return float(self.label_names.index(text)) if text in self.label_names else None

    def numbered(self, text: str) -> float | None:
        """The class of this number, or the score."""
        low, high = self.label_range
        try:
            value = float(text)
        except ValueError:
            return None
        return value if low <= value <= high and (self.is_regression or value.is_integer()) else None

    def cell(self, prediction: float) -> str:
        """How a class or a score is written in a submission; a score is cut to what the task allows."""
        if self.is_regression:
            low, high = self.label_range
            return f"{min(max(prediction, low), high):.3f}"
        return self.label_names[int(prediction)] if self.labels_are_names else str(int(prediction))


SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="CoLA",
            columns=("source", "label", "star", "sentence"),
            text_columns=("sentence",),
            hub_columns=("sentence",),
            has_header=False,
            metrics=("mcc",),
            label_names=("unacceptable", "acceptable"),
            submission={"test": "CoLA.tsv"},
        ),
        TaskSpec(
            name="SST-2",
            columns=("sentence", "label"),
            text_columns=("sentence",),
            hub_columns=("sentence",),
            label_names=("negative", "positive"),
            phrases=True,
            submission={"test": "SST-2.tsv"},
        ),
        TaskSpec(
            name="MRPC",
            columns=("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            text_columns=("#1 String", "#2 String"),
            hub_columns=SENTENCES,
            label_column="Quality",
            metrics=("accuracy", "f1"),
            label_names=("not_equivalent", "equivalent"),
            submission={"test": "MRPC.tsv"},
        ),
        TaskSpec(
            name="STS-B",
            columns=(
                *("index", "genre", "filename", "year", "old_index"),
                *("source1", "source2", "sentence1", "sentence2", "score"),
            ),
            text_columns=SENTENCES,
            hub_columns=SENTENCES,
            label_column="score",
            num_labels=1,
            label_range=(0, 5),
            metrics=("pearson", "spearman"),
            submission={"test": "STS-B.tsv"},
        ),
        TaskSpec(
            name="QQP",
            columns=("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            text_columns=("question1", "question2"),
            hub_columns=("question1", "question2"),
            label_column="is_duplicate",
            metrics=("accuracy", "f1"),
            label_names=("not_duplicate", "duplicate"),
            # Of 364,000: line ends within a question, and questions that are empty.
            broken_rows=100,
            submission={"test": "QQP.tsv"},
        ),
        TaskSpec(
            name="MNLI",
            columns=(
                *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"),
                *("sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"),
            ),
            text_columns=SENTENCES,
            hub_columns=("premise", "hypothesis"),
            label_column="gold_label",
            num_labels=3,
            label_range=(0, 2),
            label_names=("entailment", "neutral", "contradiction"),
            labels_are_names=True,
            submission={"test": "MNLI-m.tsv", "test-mismatched": "MNLI-mm.tsv", "diagnostic": "AX.tsv"},
        ),
        TaskSpec(
            name="QNLI",
            columns=("index", "question", "sentence", "label"),
            text_columns=("question", "sentence"),
            hub_columns=("question", "sentence"),
            label_names=ENTAILMENT,
            labels_are_names=True,
            submission={"test": "QNLI.tsv"},
        ),
        TaskSpec(
            name="RTE",
            columns=("index", *SENTENCES, "label"),
            text_columns=SENTENCES,
            hub_columns=SENTENCES,
            label_names=ENTAILMENT,
            labels_are_names=True,
            submission={"test": "RTE.tsv"},
        ),
        TaskSpec(
            name="WNLI",
            columns=("index", *SENTENCES, "label"),
            text_columns=SENTENCES,
            hub_columns=SENTENCES,
            label_names=ENTAILMENT[::-1],
            submission={"test": "WNLI.tsv"},
        ),
        TaskSpec(
            name="same-topic",
            text_columns=("first", "second"),
            metrics=("accuracy", "f1"),
            builtin=True,
        ),
        TaskSpec(
            name="looked-up",
            text_columns=("text",),
            label_names=COLOURS,
            builtin=True,
        ),
    )
}

SUBMISSION_ROWS = {
    "AX.tsv": 1104,
    "CoLA.tsv": 1063,
    "MNLI-m.tsv": 9796,
    "MNLI-mm.tsv": 9847,
    "MRPC.tsv": 1725,
    "QNLI.tsv": 5463,
    "QQP.tsv": 390965,
    "RTE.tsv": 3000,
    "SST-2.tsv": 1821,
    "STS-B.tsv": 1379,
    "WNLI.tsv": 146,
}
"""The files of a whole submission, and the rows of each."""


def task_spec(name: str) -> TaskSpec:
    """The task of this exact name; another name raises :class:`UserError` with the nearest one."""
    if name in TASKS:
        return TASKS[name]
    folded = {known.lower(): known for known in TASKS}
    near = get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    hint = f"; did you mean '{folded[near[0]]}'?" if near else ""
    raise UserError(f"task.name is '{name}', not one of {', '.join(TASKS)}{hint}")


def check_place(index: object, place: int, where: str) -> None:
    """Raise :class:`UserError` where a row that is to be answered is not the one that the test server takes it for."""
    if str(index) != str(place):
        raise UserError(
            f"{where} has the index {index}, but it is row {place} (counted from 0): the test server goes by the "
            "index, so give all test rows in GLUE's order"
        )
