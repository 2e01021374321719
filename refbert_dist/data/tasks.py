"""Labelled tasks: GLUE's original TSV files, and one task made from what Python ships."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np

from refbert_dist.config import TaskConfig
from refbert_dist.data.builtin import BUILTIN_PREFIX, PYTHON_DOCS, same_topic_task
from refbert_dist.data.lines import numbered_lines
from refbert_dist.data.looked_up import COLOURS, LOOKED_UP, looked_up_task
from refbert_dist.data.phrases import WORD, parent_groups
from refbert_dist.errors import UserError

Split = Literal["train", "dev"]


@dataclass(frozen=True)
class TaskSpec:
    """What a task's files look like and how it is scored."""

    name: str
    columns: tuple[str, ...]
    """All columns of the TSV file in order; empty for a built-in task."""
    text_columns: tuple[str, ...]
    """Columns of the first and, for pairs, the second sentence."""
    label_column: str
    has_header: bool
    num_labels: int
    """Classes; 1 is regression."""
    label_range: tuple[float, float]
    """Smallest and largest label, both allowed."""
    metrics: tuple[str, ...]
    """GLUE's metrics of the task; the first one leads."""
    label_names: tuple[str, ...] = ()
    """What GLUE calls the classes 0, 1, ...; empty where it has no names for them."""
    phrases: bool = False
    """Whether training rows are phrases of sentences that are rows, too."""
    builtin: bool = False

    @property
    def is_pair(self) -> bool:
        """True when a row has two sentences."""
        return len(self.text_columns) == 2

    @property
    def is_regression(self) -> bool:
        """True when the label is a score."""
        return self.num_labels == 1


@dataclass(frozen=True)
class Example:
    """One labelled row. Rows of one ``group`` are linked by shared sentences, so that guards can keep them apart."""

    text_a: str
    text_b: str | None
    label: float
    group: int


TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="CoLA",
            columns=("source", "label", "star", "sentence"),
            text_columns=("sentence",),
            label_column="label",
            has_header=False,
            num_labels=2,
            label_range=(0, 1),
            metrics=("mcc",),
            label_names=("unacceptable", "acceptable"),
        ),
        TaskSpec(
            name="MRPC",
            columns=("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            text_columns=("#1 String", "#2 String"),
            label_column="Quality",
            has_header=True,
            num_labels=2,
            label_range=(0, 1),
            metrics=("accuracy", "f1"),
            label_names=("not_equivalent", "equivalent"),
        ),
        TaskSpec(
            name="SST-2",
            columns=("sentence", "label"),
            text_columns=("sentence",),
            label_column="label",
            has_header=True,
            num_labels=2,
            label_range=(0, 1),
            metrics=("accuracy",),
            label_names=("negative", "positive"),
            phrases=True,
        ),
        TaskSpec(
            name="STS-B",
            columns=(
                *("index", "genre", "filename", "year", "old_index"),
                *("source1", "source2", "sentence1", "sentence2", "score"),
            ),
            text_columns=("sentence1", "sentence2"),
            label_column="score",
            has_header=True,
            num_labels=1,
            label_range=(0, 5),
            metrics=("pearson", "spearman"),
        ),
        TaskSpec(
            name="same-topic",
            columns=(),
            text_columns=("first", "second"),
            label_column="label",
            has_header=False,
            num_labels=2,
            label_range=(0, 1),
            metrics=("accuracy", "f1"),
            builtin=True,
        ),
        TaskSpec(
            name="looked-up",
            columns=(),
            text_columns=("text",),
            label_column="label",
            has_header=False,
            num_labels=2,
            label_range=(0, 1),
            metrics=("accuracy",),
            label_names=COLOURS,
            builtin=True,
        ),
    )
}
BUILTIN_PATHS = {"same-topic": PYTHON_DOCS, "looked-up": LOOKED_UP}
"""``task.path`` of the tasks that are built in."""


def task_spec(name: str) -> TaskSpec:
    """The task of this exact name; another name raises :class:`UserError` with the nearest one."""
    if name in TASKS:
        return TASKS[name]
    folded = {known.lower(): known for known in TASKS}
    near = get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    hint = f"; did you mean '{folded[near[0]]}'?" if near else ""
    raise UserError(f"task.name is '{name}', not one of {', '.join(TASKS)}{hint}")


def task_file(task: TaskConfig, split: Split) -> Path | None:
    """The absolute path of the file of a split, or None for a built-in task.

    Raises :class:`UserError` naming ``task.path`` or the file's field when it is missing.
    """
    spec = task_spec(task.name)
    if spec.builtin:
        if task.path != (own := BUILTIN_PATHS[spec.name]):
            raise UserError(f"task.path is '{task.path}', but {spec.name} is built in; set task.path={own}")
        return None
    if task.path.startswith(BUILTIN_PREFIX):
        raise UserError(
            f"task.path is '{task.path}', but {spec.name} is not built in; give the folder that holds its TSV files"
        )
    folder = Path(task.path)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"task.path is '{task.path}': {what}; give the folder that holds {task.train_file}")
    field = task.source(split)
    name: str = getattr(task, field)
    path = folder / name
    if not path.is_file():
        there = ", ".join(sorted(item.name for item in folder.iterdir())[:6]) or "nothing"
        raise UserError(f"task.{field} is '{name}': no such file in task.path={task.path}, which holds {there}")
    return path.resolve()


def check_task(task: TaskConfig) -> None:
    """Raise :class:`UserError` for what is wrong with a task before any row is read."""
    train, dev = task_file(task, "train"), task_file(task, "dev")
    if train is not None and train == dev and not task.held_out:
        raise UserError(
            f"task.dev_file is '{task.dev_file}', the same file as task.train_file; name a file of other rows"
        )
    spec = task_spec(task.name)
    if task.phrases and spec.is_pair:
        raise UserError(f"task.phrases is true, but rows of {spec.name} are pairs of sentences; set task.phrases=null")


def has_phrases(task: TaskConfig) -> bool:
    """Whether rows may be phrases of one sentence, and are to be kept apart as such."""
    return task_spec(task.name).phrases if task.phrases is None else task.phrases


def document_parents(task: TaskConfig) -> np.ndarray:
    """The parent sentence of each group of training rows, int64 ``[D]``; rows that share a number are its phrases.

    Of all rows of the file, because a row's parent need not be among those that were drawn.
    """
    everything = task.model_copy(update={"max_train": None, "held_out": 0.0, "min_words": None})
    examples = load_task(everything, "train", 0)
    parents = np.arange(1 + max(example.group for example in examples))
    # Rows of one group have equal words, and so one parent.
    parents[[example.group for example in examples]] = parent_groups([example.text_a for example in examples])
    return parents


def load_task(task: TaskConfig, split: Split, seed: int) -> list[Example]:
    """All rows of a split in file order; with ``task.max_train`` that many training rows, drawn with ``seed``.

    Training rows are those of at least ``task.min_words`` words. With ``task.held_out`` both splits come from them.
    Raises :class:`UserError` naming the field, the file and the line for every fault of the input.
    """
    spec = task_spec(task.name)
    path = task_file(task, split)
    field = task.source(split)
    if path is None:
        rows = _builtin_rows(task, split, seed)
        # Its passages recur in many pairs, so that linking them would join all rows into one group; the guard that
        # compares sentences keeps rows with a common passage apart.
        examples = [Example(*row, group) for group, row in enumerate(rows)]
    else:
        sentences = _read_tsv(path, spec, f"task.{field}")
        groups = sentence_groups([row[:2] for row in sentences])
        examples = [Example(*row, group) for row, group in zip(sentences, groups, strict=True)]
    # Found among all rows of the file: a row's parent need not be among those that are drawn.
    kept: Sequence[int] = range(len(examples))
    linked = [example.group for example in examples]
    if task.held_out and has_phrases(task):
        linked = parent_groups([example.text_a for example in examples])
    if field == "train_file" and task.min_words is not None:
        kept = _long_enough(examples, task.min_words)
    if field == "train_file" and task.max_train is not None and task.max_train < len(kept):
        kept = sorted(random.Random(seed).sample(kept, task.max_train))
    if task.held_out and path is not None:
        held = _held_out(task, [linked[index] for index in kept], seed)
        kept = [index for index in kept if (linked[index] in held) == (split == "dev")]
    return [examples[index] for index in kept]


def _long_enough(examples: Sequence[Example], min_words: int) -> list[int]:
    """Places of the rows of at least so many words, both sentences of a pair together."""
    words = [len(WORD.findall(f"{example.text_a} {example.text_b or ''}")) for example in examples]
    kept = [index for index, count in enumerate(words) if count >= min_words]
    if not kept:
        raise UserError(
            f"task.min_words is {min_words}, but the longest row of task.train_file has {max(words)} words; set a "
            "smaller task.min_words"
        )
    return kept


def _builtin_rows(task: TaskConfig, split: Split, seed: int) -> list[tuple[str, str | None, float]]:
    if task.path == LOOKED_UP:
        return [(text, None, float(label)) for text, label in looked_up_task(seed, task.held_out)[split == "dev"]]
    pairs = same_topic_task(seed, task.held_out)[split == "dev"]
    return [(first, second, float(label)) for first, second, label in pairs]


def _held_out(task: TaskConfig, groups: Sequence[int], seed: int) -> set[int]:
    """Groups that together have ``task.held_out`` of the rows, or nearly so."""
    sizes = Counter(groups)
    room = wanted = round(task.held_out * len(groups))
    order = list(sizes)
    random.Random(seed).shuffle(order)
    held = set()
    for group in order:
        if sizes[group] <= room:
            held.add(group)
            room -= sizes[group]
    if room > wanted / 2 or not held:
        raise UserError(
            f"task.held_out is {task.held_out}, but of the {len(groups)} rows of task.train_file {max(sizes.values())} "
            f"are linked by common sentences, so that only {wanted - room} can be held out; set another task.held_out, "
            "or 0 and a task.dev_file of your own"
        )
    return held


def _read_tsv(path: Path, spec: TaskSpec, field: str) -> list[tuple[str, str | None, float]]:
    """Split on tabs only: in GLUE's files a quotation mark is a character like any other."""
    columns: Sequence[str] = spec.columns
    rows: list[tuple[str, str | None, float]] = []
    for number, line in numbered_lines(path, field):
        if not line:
            continue
        cells = line.split("\t")
        if number == 1 and spec.has_header:
            missing = [name for name in (*spec.text_columns, spec.label_column) if name not in cells]
            if missing:
                raise UserError(
                    f"{field}: {path} line 1 is not {spec.name}'s header, it lacks '{missing[0]}'; "
                    f"its columns are {', '.join(spec.columns)}"
                )
            columns = cells
            continue
        if len(cells) != len(columns):
            raise UserError(
                f"{field}: {path} line {number} has {len(cells)} tab-separated columns, not {len(columns)}; "
                f"{spec.name} has {', '.join(columns)}"
            )
        values = dict(zip(columns, cells, strict=True))
        texts = [values[name].strip() for name in spec.text_columns]
        if not all(texts):
            raise UserError(f"{field}: {path} line {number} has an empty sentence; fill it in or remove the line")
        rows.append(
            (texts[0], texts[1] if spec.is_pair else None, _label(values[spec.label_column], spec, path, number, field))
        )
    if not rows:
        raise UserError(f"{field}: {path} holds no rows; give a file with labelled rows")
    return rows


def _label(text: str, spec: TaskSpec, path: Path, number: int, field: str) -> float:
    low, high = spec.label_range
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or not (spec.is_regression or value.is_integer()):
        allowed = f"a number from {low:g} to {high:g}" if spec.is_regression else f"one of 0 to {high:g}"
        raise UserError(f"{field}: {path} line {number} has the label '{text}'; {spec.name} allows {allowed}")
    return value


def sentence_groups(rows: Iterable[tuple[str, str | None]]) -> list[int]:
    """Number rows so that two rows linked by a chain of equal sentences (case and white space aside) share a number."""
    parent: dict[str, str] = {}

    def root(sentence: str) -> str:
        while parent.setdefault(sentence, sentence) != sentence:
            parent[sentence] = parent[parent[sentence]]
            sentence = parent[sentence]
        return sentence

    firsts = []
    for text_a, text_b in rows:
        first = " ".join(text_a.lower().split())
        firsts.append(first)
        root(first)
        if text_b is not None:
            parent[root(" ".join(text_b.lower().split()))] = root(first)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(first), len(numbers)) for first in firsts]
