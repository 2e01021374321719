"""Tasks as data sets of the ``datasets`` library, in the columns of GLUE on the hub: there, as Parquet, or as saved.

Only what reads rows imports ``datasets``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from refbert_dist.config import Split, TaskConfig
from refbert_dist.data.glue import Row, Rows, TaskSpec, check_place
from refbert_dist.errors import UserError

PREFIX = "datasets:"
TEXT_TYPES = ("string", "large_string")
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
"""Name of one of several Parquet files of a split."""


def is_data_set(task: TaskConfig, split: Split) -> bool:
    """Whether a split's rows are read by ``datasets``: they are not where ``task.path`` has the named file."""
    file = task.file(split)
    return not (file and Path(task.path, file).is_file()) and _kind(task.path) is not None


def is_remote(task: TaskConfig) -> bool:
    """Whether its rows would have to be downloaded."""
    return _kind(task.path) == "hub"


def split_name(task: TaskConfig, split: Split) -> str:
    """The data set's own name of a split: ``dev_matched.tsv`` is ``validation_matched``; others are taken as given."""
    name = str(task.file(split)).removesuffix(".tsv")
    return "validation" + name.removeprefix("dev") if name.partition("_")[0] == "dev" else name


def place(task: TaskConfig) -> str:
    """Where the data set lies; a folder in full."""
    return task.path if is_remote(task) else str(Path(task.path).resolve())


def split_files(task: TaskConfig, split: Split) -> tuple[Path, ...]:
    """The local files of a split, absolute; none of a data set on the hub. Raises UserError where it is not there."""
    if is_remote(task):
        _hub_name(task.path)
        return ()
    found = _local_splits(Path(task.path).resolve())
    name = split_name(task, split)
    if name not in found:
        field = task.source(split)
        raise UserError(
            f"task.{field} is '{task.file(split)}', but the data set in task.path={task.path} has no split '{name}'; "
            f"name one of {', '.join(sorted(found))}"
        )
    return found[name]


def download(task: TaskConfig) -> None:
    """Bring a hub data set into the local cache, from which it is read where there is no network."""
    for split in task.splits:
        if is_data_set(task, split):
            _data_set(task, split)


def read_data_set(task: TaskConfig, spec: TaskSpec, split: Split, labelled: bool) -> Rows:
    """All rows of a split; see :func:`refbert_dist.data.tsv.read_tsv`. Raises :class:`UserError`."""
    where = f"task.{task.source(split)}: {task.path} split {split_name(task, split)}"
    data = _data_set(task, split)
    _check_columns(data.features, spec, labelled, where)
    names = _class_names(data.features, spec, where) if labelled else None
    rows: list[Row] = []
    broken = 0
    with _explained(task, split):
        for number, row in enumerate(data, start=1):
            texts = [(row[name] or "").strip() for name in spec.hub_columns]
            if labelled and not all(texts):
                broken += 1
                if broken > spec.broken_rows:
                    raise UserError(f"{where} row {number} has an empty sentence; fill it in or remove the row")
                continue
            if not labelled and "idx" in row:
                check_place(row["idx"], len(rows), f"{where} row {number}")
            label = _label(row["label"], names, spec, f"{where} row {number}") if labelled else None
            rows.append((texts[0], texts[1] if spec.is_pair else None, label))
    if not rows:
        raise UserError(f"{where} holds no rows; give a split with rows")
    return Rows(rows, broken)


def _kind(path: str) -> Literal["hub", "parquet", "saved"] | None:
    if path.startswith(PREFIX):
        return "hub"
    folder = Path(path)
    if next(folder.glob("*/state.json"), None):
        return "saved"
    return "parquet" if next(_parquet_files(folder), None) else None


def _parquet_files(folder: Path) -> Iterator[Path]:
    """Of one data set; its splits may have folders of their own, in which files are numbered."""
    yield from folder.glob("*.parquet")
    yield from (path for path in folder.glob("*/*.parquet") if path.stem.isdigit())


def _local_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    if _kind(str(folder)) == "saved":
        saved = sorted(path.parent for path in folder.glob("*/state.json"))
        return {split.name: tuple(sorted(split.glob("*.arrow"))) for split in saved}
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(_parquet_files(folder)):
        shard = SHARD.fullmatch(path.stem)
        name = shard[1] if shard else (path.stem if path.parent == folder else path.parent.name)
        found[name] = (*found.get(name, ()), path)
    return found


def _hub_name(path: str) -> tuple[str, str]:
    """Name and configuration."""
    name, _, configuration = path.removeprefix(PREFIX).rpartition("/")
    if not name or name.count("/") > 1:
        raise UserError(
            f"task.path is '{path}', which names no data set with its configuration; write {PREFIX}NAME/CONFIGURATION, "
            f"such as {PREFIX}nyu-mll/glue/mrpc"
        )
    return name, configuration


def _data_set(task: TaskConfig, split: Split) -> Any:
    import datasets

    datasets.disable_progress_bars()
    files, name = split_files(task, split), split_name(task, split)
    with _explained(task, split):
        if is_remote(task):
            data_set, configuration = _hub_name(task.path)
            return datasets.load_dataset(data_set, configuration, split=name)
        if _kind(task.path) == "saved":
            return datasets.load_from_disk(str(Path(task.path, name)))
        # Streamed: otherwise it would first be copied into the library's own cache.
        paths = {name: [str(path) for path in files]}
        return datasets.load_dataset("parquet", data_files=paths, split=name, streaming=True)


@contextmanager
def _explained(task: TaskConfig, split: Split) -> Iterator[None]:
    import datasets

    try:
        yield
    except (OSError, ValueError) as error:  # No connection, no such data set or split; damage.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        offline = " (HF_HUB_OFFLINE is set)" if is_remote(task) and datasets.config.HF_HUB_OFFLINE else ""
        raise UserError(
            f"task.path is '{task.path}', whose split '{split_name(task, split)}' cannot be read{offline}: {reason}; "
            "give a folder, or a name that the hub has and a connection"
        ) from None


def _check_columns(features: Mapping[str, Any], spec: TaskSpec, labelled: bool, where: str) -> None:
    texts = [name for name in spec.hub_columns if getattr(features.get(name), "dtype", None) not in TEXT_TYPES]
    missing = texts + ["label"] * (labelled and "label" not in features)
    if missing:
        kind = "column of text" if texts else "column"
        raise UserError(
            f"{where} has no {kind} '{missing[0]}' but {', '.join(features)}; {spec.name} has "
            f"{', '.join((*spec.hub_columns, 'label', 'idx'))} on the hub"
        )


def _class_names(features: Mapping[str, Any], spec: TaskSpec, where: str) -> list[str] | None:
    """What the data set calls its classes, by number; None where it does not say."""
    names: list[str] | None = getattr(features["label"], "names", None)
    if names is not None and {*names} != {*spec.label_names} and any(spec.numbered(name) is None for name in names):
        raise UserError(
            f"{where} has the classes {', '.join(names)}, but those of {spec.name} are {', '.join(spec.label_names)}; "
            "give a data set with these"
        )
    return names


def _label(value: Any, names: list[str] | None, spec: TaskSpec, where: str) -> float:
    """A class by its name where there is one, whatever number the data set gives it."""
    given = names[value] if names is not None and isinstance(value, int) and 0 <= value < len(names) else value
    if isinstance(given, float):
        given = round(given, 6)  # The hub keeps scores in half the precision of Python's numbers.
    label = spec.named(str(given))
    label = spec.numbered(str(given)) if label is None else label
    if label is None:
        allowed = f"one of {', '.join(spec.label_names)}" if spec.label_names else spec.allowed_labels
        raise UserError(f"{where} has the label {value!r}; {spec.name} allows {allowed}")
    return label
