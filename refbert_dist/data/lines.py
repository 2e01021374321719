"""Lines of a UTF-8 text file, plain or gzip, with every fault told as file and line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from refbert_dist.errors import UserError

MAX_LINE_BYTES = 1 << 28
"""A line is held in memory whole; a longer one is no line of a table, but another kind of file."""


def numbered_lines(path: Path, field: str, piece_bytes: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its line end); holds one line in memory.

    With ``piece_bytes`` a longer line comes in pieces that end after a space, under one number.
    A byte order mark and carriage returns before the line feed are dropped; only a line feed ends a line.
    Raises :class:`UserError` naming ``field`` (a dotted configuration name), the file and the line.
    """
    limit = piece_bytes or MAX_LINE_BYTES
    number, rest = 1, b""
    begun = False
    try:
        with _open(path) as stream:
            while data := rest + stream.readline(limit):
                rest = b""
                if len(data) >= limit and not data.endswith(b"\n"):
                    cut = data.rfind(b" ") + 1 if piece_bytes else 0
                    if not cut:
                        what = "without a space" if piece_bytes else "or more"
                        raise UserError(
                            f"{field}: {path} line {number} has {limit:,} bytes {what}; break it into lines"
                        )
                    data, rest = data[:cut], data[cut:]
                try:
                    line = data.decode("utf-8" if begun else "utf-8-sig")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{field}: {path} line {number} is not UTF-8 text (byte {error.start + 1} of the line); "
                        "save the file as UTF-8"
                    ) from None
                begun = True
                yield number, line.removesuffix("\n").removesuffix("\r")
                number += data.endswith(b"\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{field}: {path} is damaged or is not gzip after line {number - 1} ({error}); copy or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror}); check the path and its rights") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
