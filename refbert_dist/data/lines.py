"""Lines of a UTF-8 text file, plain or gzip, with every fault told as file and line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from refbert_dist.errors import UserError


def numbered_lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its line end); holds one line in memory.

    A byte order mark and carriage returns before the line feed are dropped; only a line feed ends a line.
    Raises :class:`UserError` naming ``field`` (a dotted configuration name), the file and the line.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, data in enumerate(stream, start=1):
                try:
                    line = data.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{field}: {path} line {number} is not UTF-8 text (byte {error.start + 1} of the line); "
                        "save the file as UTF-8"
                    ) from None
                yield number, line.removesuffix("\n").removesuffix("\r")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{field}: {path} is damaged or is not gzip after line {number} ({error}); copy or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror}); check the path and its rights") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
