"""``RUN_DIR/metrics.jsonl``: the truth about what a run measured; everything else that shows metrics is a copy.

One JSON object a line::

    {"time": 1700000000.0, "stage": "distill-general", "job": "refbert", "step": 40, "loss": 3.21, ...}

``time`` is in seconds since the epoch. A number that is not finite is written as ``null``, which JSON can express.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends records; each is one ``write`` to a file opened with O_APPEND, so it survives the end of the process."""

    def __init__(self, run_dir: Path | str) -> None:
        """Open (create) the log of a run; a line that a kill left torn is closed off, and readers ignore it."""
        path = Path(run_dir) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.write(self._handle, b"\n")

    def write(self, stage: str, job: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one record of named values.

        The same (stage, job, step) may be written again after a resume; the last one counts.
        Raises :class:`OSError` when the disk takes only a part of it.
        """
        record = {"time": time.time(), "stage": stage, "job": job, "step": step, **values}
        line = json.dumps({name: _finite(value) for name, value in record.items()}, allow_nan=False) + "\n"
        data = line.encode()
        written = os.write(self._handle, data)
        if written < len(data):
            # The rest would not join on: another process may have appended in between.
            os.write(self._handle, b"\n")
            raise OSError(f"{FILE_NAME}: only {written} of {len(data)} bytes could be written")

    def close(self) -> None:
        """Close the file; the log cannot be used afterwards."""
        os.close(self._handle)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(run_dir: Path | str, latest: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the records of a run in the order of writing; torn lines are left out, a missing file holds none.

    With ``latest`` only the last record of each (stage, job, step) comes, in the order in which these first appeared.
    """
    path = Path(run_dir) / FILE_NAME
    if not path.exists():
        return
    with path.open("rb") as stream:
        records = (record for line in stream if (record := parse_record(line)) is not None)
        if latest:
            yield from {(item["stage"], item["job"], item["step"]): item for item in records}.values()
        else:
            yield from records


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record on a line, or None when the line is torn."""
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return record


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
