"""What every process of a stage leaves in ``RUN_DIR/logs``, wherever it was started.

``STAGE-rankN.log`` gets what process N writes to stdout and stderr; ``STAGE-rankN.error.json`` holds the sentence by
which it explains its failure.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import IO

from refbert_dist.artifacts import write_json
from refbert_dist.errors import RefBertError


def log_path(run_dir: Path | str, stage: str, number: int) -> Path:
    """What process ``number`` of a stage prints."""
    return Path(run_dir) / "logs" / f"{stage}-rank{number}.log"


def open_log(path: Path, what: str) -> IO[bytes]:
    """Open a log for another start, whose first line says when and what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    output = path.open("ab")
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    output.write(f"=== {now} start of {what}\n".encode())
    output.flush()
    return output


def error_path(run_dir: Path | str, stage: str, number: int | str) -> Path:
    """How process ``number`` of a stage explains its failure; with ``*`` a pattern for all."""
    return Path(run_dir) / "logs" / f"{stage}-rank{number}.error.json"


def report_error(run_dir: Path | str, stage: str, number: int, error: RefBertError) -> None:
    """Leave the sentence of an error; the process then exits with ``error.exit_code``."""
    write_json(error_path(run_dir, stage, number), {"exit_code": error.exit_code, "message": str(error)})
