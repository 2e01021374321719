"""``refbert predict`` and ``refbert serve``: answers from an exported model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import typer

from refbert_dist.errors import UserError
from refbert_dist.inference.lines import parse_lines
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.tracking.progress import shown
from refbert_dist.tracking.quiet import quiet_libraries

STDIN = Path("-")
COUNTED_BYTES = 1 << 20


def predict(model_dir: Path, source: Path, dry_run: bool, device: str | None, **options: Any) -> None:
    """Print one JSON object for each line of ``source`` (``-``: standard input)."""
    pipeline = _pipeline(model_dir, dry_run, device, options)
    if pipeline is None:
        return
    with _opened(source) as lines:
        # A person who types or reads on the terminal sees the answers come; a bar would only be between them.
        quiet = sys.stdout.isatty() or lines.isatty()
        with shown("predict", _line_count(lines), "texts", enabled=not quiet) as progress:
            for number, answer in enumerate(pipeline.stream(parse_lines(lines)), start=1):
                typer.echo(json.dumps(answer, ensure_ascii=False))
                progress(number)


def serve(
    model_dir: Path, host: str, port: int, token_file: Path | None, dry_run: bool, device: str | None, **options: Any
) -> None:
    """Answer over HTTP until told to stop."""
    from refbert_dist.serving.app import Limits
    from refbert_dist.serving.server import check_address, serve

    token = None if token_file is None else _read_token(token_file)
    check_address(host, token)
    pipeline = _pipeline(model_dir, dry_run, device, options)
    if pipeline is not None:
        serve(pipeline, host, port, token, Limits())


def _pipeline(model_dir: Path, dry_run: bool, device: str | None, options: dict[str, Any]) -> RefBertPipeline | None:
    """Open a model; to try only is to say that it can be."""
    quiet_libraries()
    pipeline = RefBertPipeline(model_dir, device, **options)
    if not dry_run:
        return pipeline
    typer.echo(f"{model_dir} is a model of {pipeline.labels} label(s), ready to predict")
    return None


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise UserError(f"--token-file is '{path}', which cannot be read; give a file that holds the token") from None
    if not token:
        raise UserError(f"--token-file is '{path}', which is empty; write a token into it")
    return token


def _opened(source: Path) -> TextIO:
    if source == STDIN:
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]
        return sys.stdin
    try:
        return source.open(encoding="utf-8", errors="strict")
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); give a file of lines, or - for stdin") from None


def _line_count(lines: TextIO) -> int | None:
    """Lines from here to the end of a file; None of a pipe."""
    if not lines.seekable():
        return None
    stream = lines.buffer  # type: ignore[attr-defined]
    start = stream.tell()

    count, last = 0, b"\n"
    while block := stream.read(COUNTED_BYTES):
        count += block.count(b"\n")
        last = block[-1:]
    stream.seek(start)
    return count + (last != b"\n")
