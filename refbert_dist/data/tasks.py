"""Labelled tasks: the rows of an experiment's splits, from files, data sets, or what Python ships."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refbert_dist.config import Split, TaskConfig
from refbert_dist.data import hub
from refbert_dist.data.builtin import BUILTIN_PREFIX, PYTHON_DOCS, same_topic_task
from refbert_dist.data.glue import TASKS, Rows, TaskSpec, task_spec
from refbert_dist.data.looked_up import LOOKED_UP, looked_up_task
from refbert_dist.data.phrases import WORD, parent_groups
from refbert_dist.data.tsv import read_tsv
from refbert_dist.errors import UserError

__all__ = [
    "TASKS",
    "Example",
    "Split",
    "TaskSpec",
    "check_task",
    "document_parents",
    "has_labels",
    "has_phrases",
    "load_task",
    "read_task",
    "sentence_groups",
    "task_files",
    "task_source",
    "task_spec",
]


@dataclass(frozen=True)
class Example:
    """One row. Rows of one ``group`` are linked by shared sentences, so that guards can keep them apart."""

    text_a: str
    text_b: str | None
    label: float | None
    """None of rows whose labels only GLUE's test server has."""
    group: int


BUILTIN_PATHS = {"same-topic": PYTHON_DOCS, "looked-up": LOOKED_UP}
"""``task.path`` of the tasks that are built in."""


def has_labels(split: Split) -> bool:
    """Whether the labels of a split are read."""
    return split in ("train", "dev", "dev-mismatched")


def task_files(task: TaskConfig, split: Split) -> tuple[Path, ...]:
    """The local files of a split, absolute; none of a built-in task or a data set on the hub.

    Raises :class:`UserError` naming ``task.path`` or the file's field when one is missing.
    """
    spec = task_spec(task.name)
    if spec.builtin:
        if task.path != (own := BUILTIN_PATHS[spec.name]):
            raise UserError(f"task.path is '{task.path}', but {spec.name} is built in; set task.path={own}")
        return ()
    if task.path.startswith(BUILTIN_PREFIX):
        raise UserError(
            f"task.path is '{task.path}', but {spec.name} is not built in; give the folder that holds its TSV files"
        )
    if hub.is_data_set(task, split):
        return hub.split_files(task, split)
    folder = Path(task.path)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"task.path is '{task.path}': {what}; give the folder that holds {task.train_file}")
    path = _tsv_file(task, split)
    if not path.is_file():
        there = ", ".join(sorted(item.name for item in folder.iterdir())[:6]) or "nothing"
        raise UserError(
            f"task.{task.source(split)} is '{task.file(split)}': no such file in task.path={task.path}, which holds "
            f"{there}"
        )
    return (path,)


def task_source(task: TaskConfig, split: Split) -> str:
    """Where a split's rows lie, as far as that can be told without looking: a path or a name, and of data sets both."""
    if task_spec(task.name).builtin:
        return task.path
    if hub.is_data_set(task, split):
        return f"{hub.place(task)}:{hub.split_name(task, split)}"
    return str(_tsv_file(task, split))


def _tsv_file(task: TaskConfig, split: Split) -> Path:
    return Path(task.path, task.file(split) or "").resolve()


def check_task(task: TaskConfig) -> None:
    """Raise :class:`UserError` for what is wrong with a task before any row is read."""
    spec = task_spec(task.name)
    _check_splits(task, spec)
    if task.phrases and spec.is_pair:
        raise UserError(f"task.phrases is true, but rows of {spec.name} are pairs of sentences; set task.phrases=null")
    for split in task.splits:
        task_files(task, split)
        if split == "train" or task.held_out or spec.builtin:
            continue
        if task_source(task, split) == task_source(task, "train"):
            field = task.source(split)
            raise UserError(
                f"task.{field} is '{task.file(split)}', the same file as task.train_file; name a file of other rows"
            )


def _check_splits(task: TaskConfig, spec: TaskSpec) -> None:
    further = {*spec.submission, *(["dev-mismatched"] if "test-mismatched" in spec.submission else [])}
    for split in task.splits:
        if split not in ("train", "dev") and split not in further:
            field = task.source(split)
            raise UserError(
                f"task.{field} is '{task.file(split)}', but {spec.name} has no such rows; set task.{field}=null"
            )


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

    Training rows are those of at least ``task.min_words`` words. With ``task.held_out`` both train and dev come from
    them. Raises :class:`UserError` naming the field, the file and the line for every fault of the input.
    """
    return read_task(task, split, seed)[0]


def read_task(task: TaskConfig, split: Split, seed: int) -> tuple[list[Example], int]:
    """As :func:`load_task`; and how many rows of the source are left out because GLUE's own file has them broken."""
    spec = task_spec(task.name)
    files = task_files(task, split)
    if spec.builtin:
        # Its passages recur in many pairs, so that linking them would join all rows into one group; the guard that
        # compares sentences keeps rows with a common passage apart.
        examples = [Example(*row, group) for group, row in enumerate(_builtin_rows(task, split, seed))]
        return _chosen(task, split, seed, examples), 0
    found = _rows(task, spec, split, files)
    groups = sentence_groups([row[:2] for row in found.rows])
    examples = [Example(*row, group) for row, group in zip(found.rows, groups, strict=True)]
    return _chosen(task, split, seed, examples), found.broken


def _rows(task: TaskConfig, spec: TaskSpec, split: Split, files: Sequence[Path]) -> Rows:
    if hub.is_data_set(task, split):
        return hub.read_data_set(task, spec, split, has_labels(split))
    return read_tsv(files[0], spec, f"task.{task.source(split)}", has_labels(split))


def _chosen(task: TaskConfig, split: Split, seed: int, examples: list[Example]) -> list[Example]:
    """Of the rows of a file those that the experiment has in this split."""
    if task.source(split) != "train_file":
        return examples
    # Found among all rows of the file: a row's parent need not be among those that are drawn.
    kept: Sequence[int] = range(len(examples))
    linked = [example.group for example in examples]
    if task.held_out and has_phrases(task):
        linked = parent_groups([example.text_a for example in examples])
    if task.min_words is not None:
        kept = _long_enough(examples, task.min_words)
    if task.max_train is not None and task.max_train < len(kept):
        kept = sorted(random.Random(seed).sample(kept, task.max_train))
    if task.held_out and not task_spec(task.name).builtin:
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
