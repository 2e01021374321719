"""Documents of an unlabelled corpus, one after the other, from whatever the experiment names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from refbert_dist.config import CorpusConfig
from refbert_dist.data.builtin import BUILTIN_PREFIX, PYTHON_DOCS, python_docs_documents
from refbert_dist.data.lines import numbered_lines
from refbert_dist.errors import UserError

Format = Literal["text", "jsonl", "parquet"]

ENDINGS: dict[str, Format] = {
    ".txt": "text",
    ".txt.gz": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
MAX_TEXT_CHARACTERS = 1 << 20
"""Plain text without blank lines is cut into documents of about this size, so that memory stays bounded."""
PARQUET_ROWS = 256
PARQUET_BUFFER_BYTES = 1 << 20
"""Read a Parquet file in pieces of this size instead of a whole column of a row group."""


@dataclass(frozen=True)
class Source:
    """Documents that are read in one go."""

    files: tuple[Path, ...]
    """Local files that they come from, absolute; none for hub and built-in data."""
    documents: Callable[[], Iterator[str]]
    """Yields them in a fixed order, holding one at a time; blank ones are left out. Raises :class:`UserError` (one
    sentence naming ``corpus.path``) for every fault of the input."""


def sources(corpus: CorpusConfig) -> list[Source]:
    """The corpus in its order: one source a file, or a single one where the files cannot be read independently."""
    files = _typed_files(corpus)
    if files and corpus.max_documents is None:
        return [Source((path,), partial(READERS[kind], path, corpus)) for path, kind in files]
    return [Source(tuple(path for path, _ in files), partial(_first_documents, corpus))]


def is_remote(corpus: CorpusConfig) -> bool:
    """Whether its text would have to be downloaded."""
    return _format_of_path(corpus) == "hub"


def no_text(corpus: CorpusConfig) -> UserError:
    """The error of a corpus without a single document."""
    return UserError(f"corpus.path is '{corpus.path}': it holds no text; give a file or folder with documents")


def check_corpus(corpus: CorpusConfig) -> None:
    """Raise :class:`UserError` for what can be seen from the first rows of the first file, without reaching the hub."""
    kind = _format_of_path(corpus)
    if kind == "builtin":
        _builtin_documents(corpus)
    elif kind == "files":
        path, file_kind = _typed_files(corpus)[0]
        if file_kind == "parquet":
            _check_parquet(path, corpus)
        else:
            next(READERS[file_kind](path, corpus), None)


def _first_documents(corpus: CorpusConfig) -> Iterator[str]:
    return islice(_all_documents(corpus), corpus.max_documents)


def _all_documents(corpus: CorpusConfig) -> Iterator[str]:
    kind = _format_of_path(corpus)
    if kind == "builtin":
        yield from _builtin_documents(corpus)
    elif kind == "hub":
        yield from _hub_documents(corpus)
    else:
        for path, file_kind in _typed_files(corpus):
            yield from READERS[file_kind](path, corpus)


def _format_of_path(corpus: CorpusConfig) -> Literal["files", "hub", "builtin"]:
    if corpus.format == "hub" or corpus.format == "builtin":
        return corpus.format
    if corpus.format == "auto":
        if corpus.path.startswith(BUILTIN_PREFIX):
            return "builtin"
        is_path = Path(corpus.path).exists() or Path(corpus.path).parent.exists() or _ending(Path(corpus.path))
        if not is_path and HUB_NAME.fullmatch(corpus.path):
            return "hub"
    return "files"


def _typed_files(corpus: CorpusConfig) -> list[tuple[Path, Format]]:
    if _format_of_path(corpus) != "files":
        return []
    path = Path(corpus.path)
    if not path.exists():
        raise UserError(
            f"corpus.path is '{corpus.path}': no such file or folder; give a text, JSONL or Parquet file, a folder of "
            f"them, '{PYTHON_DOCS}', or a hub data set with corpus.format=hub"
        )
    if path.is_dir():
        inside = [item for item in sorted(path.resolve().rglob("*")) if item.is_file()]
        files = [
            item for item in inside if not any(part.startswith(".") for part in item.relative_to(path.resolve()).parts)
        ]
    else:
        files = [path.resolve()]
    typed: list[tuple[Path, Format]]
    if corpus.format == "text" or corpus.format == "jsonl" or corpus.format == "parquet":
        typed = [(item, corpus.format) for item in files]
    else:
        typed = [(item, ENDINGS[ending]) for item in files if (ending := _ending(item))]
    if not typed:
        known = ", ".join(ENDINGS)
        what = "holds no file that ends" if path.is_dir() else "does not end"
        raise UserError(f"corpus.path is '{corpus.path}': it {what} in one of {known}; set corpus.format")
    return typed


def _ending(path: Path) -> str | None:
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def _text_documents(path: Path, corpus: CorpusConfig) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for _, line in numbered_lines(path, "corpus.path", piece_bytes=MAX_TEXT_CHARACTERS):
        blank = not line.strip()
        if not blank:
            lines.append(line)
            size += len(line)
        if lines and (blank or size >= MAX_TEXT_CHARACTERS):
            yield "\n".join(lines)
            lines, size = [], 0
    if lines:
        yield "\n".join(lines)


def _jsonl_documents(path: Path, corpus: CorpusConfig) -> Iterator[str]:
    # Not through ``datasets``: so rows may differ in their other columns, and a fault has a line.
    for number, line in numbered_lines(path, "corpus.path"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"corpus.path: {path} line {number} is not valid JSON ({error}); write one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"corpus.path: {path} line {number} is not a JSON object; write one JSON object a line")
        if corpus.text_column not in row:
            raise _missing_column(corpus, f"{path} line {number}", list(row))
        yield from _text_of(row[corpus.text_column], corpus, f"{path} line {number}")


def _parquet_documents(path: Path, corpus: CorpusConfig) -> Iterator[str]:
    import pyarrow.parquet

    _check_parquet(path, corpus)
    number = 0
    # Buffering ahead, the default, would hold a row group's whole column, which may be the file.
    options = {"pre_buffer": False, "buffer_size": PARQUET_BUFFER_BYTES}
    with _parquet_errors(path), pyarrow.parquet.ParquetFile(path, **options) as file:
        for batch in file.iter_batches(PARQUET_ROWS, columns=[corpus.text_column]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield from _text_of(value, corpus, f"{path} row {number}")


def _check_parquet(path: Path, corpus: CorpusConfig) -> None:
    import pyarrow.parquet

    with _parquet_errors(path):
        columns = pyarrow.parquet.read_schema(path).names
    if corpus.text_column not in columns:
        raise _missing_column(corpus, str(path), columns)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"corpus.path: {path} is not a readable Parquet file ({_first_line(error)}); write it again"
        ) from None


def download(corpus: CorpusConfig) -> None:
    """Bring a hub data set into the local cache, from which it is read where there is no network."""
    _hub_rows(corpus, streaming=False)


def _hub_documents(corpus: CorpusConfig) -> Iterator[str]:
    import datasets

    # Streaming needs the hub; offline, a data set that was downloaded before is read from its cache.
    rows = _hub_rows(corpus, streaming=not datasets.config.HF_HUB_OFFLINE)
    with _explaining_the_hub(corpus):
        for number, row in enumerate(rows, start=1):
            if corpus.text_column not in row:
                raise _missing_column(corpus, corpus.path, list(row))
            yield from _text_of(row[corpus.text_column], corpus, f"{corpus.path} row {number}")


def _hub_rows(corpus: CorpusConfig, streaming: bool) -> Any:
    import datasets

    name, _, config = corpus.path.partition(":")
    with _explaining_the_hub(corpus):
        return datasets.load_dataset(name, config or None, split=corpus.split, streaming=streaming)


@contextmanager
def _explaining_the_hub(corpus: CorpusConfig) -> Iterator[None]:
    import datasets

    try:
        yield
    except OSError as error:  # No connection, no such data set, no right to read it.
        offline = " (HF_HUB_OFFLINE is set)" if datasets.config.HF_HUB_OFFLINE else ""
        raise UserError(
            f"corpus.path is '{corpus.path}': no such file or folder, and no hub data set of this name can be "
            f"reached{offline}: {_first_line(error)}; give a local path, or a name and a connection"
        ) from None
    except ValueError as error:
        raise UserError(
            f"corpus.path is '{corpus.path}' with corpus.split={corpus.split}: {_first_line(error)}; write the "
            "configuration after a colon, as in OWNER/NAME:CONFIGURATION"
        ) from None


def _builtin_documents(corpus: CorpusConfig) -> Iterator[str]:
    if corpus.path != PYTHON_DOCS:
        raise UserError(f"corpus.path is '{corpus.path}': the only built-in corpus is '{PYTHON_DOCS}'; use that")
    return python_docs_documents()


def _text_of(value: Any, corpus: CorpusConfig, where: str) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, str):
        raise UserError(
            f"corpus.text_column is '{corpus.text_column}': {where} holds a {type(value).__name__} there; "
            "name a column of text"
        )
    if value.strip():
        yield value


def _missing_column(corpus: CorpusConfig, where: str, columns: list[str]) -> UserError:
    return UserError(
        f"corpus.text_column is '{corpus.text_column}', which {where} does not have; "
        f"its columns are {', '.join(columns) or 'none'}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


READERS: dict[Format, Callable[[Path, CorpusConfig], Iterator[str]]] = {
    "text": _text_documents,
    "jsonl": _jsonl_documents,
    "parquet": _parquet_documents,
}
