"""Code and settings as they were at submission: what is edited while a job waits in the queue changes nothing."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import launchers
from launchers.cluster.records import submitted
from refbert_dist.artifacts.disk import explain_disk_errors, temporary_beside, write_text
from refbert_dist.config import Experiment, to_yaml

PACKAGES = ("refbert_dist", "launchers", "tune")


@dataclass(frozen=True)
class Snapshot:
    """What jobs run from."""

    code: Path
    """Folder that holds the packages."""
    experiment: Path
    """Resolved settings."""


def take_snapshot(exp: Experiment) -> Snapshot:
    """Copy the toolkit and the settings into the run directory; the same ones are kept once."""
    source = Path(launchers.__file__).parents[1]
    files = {path.relative_to(source): path.read_bytes() for path in _files(source)}
    code = submitted(exp.run.dir) / "code" / _digest({str(name): content for name, content in files.items()})
    settings = to_yaml(exp)
    experiment = submitted(exp.run.dir) / "experiments" / f"{_digest({'': settings.encode()})}.yaml"
    with explain_disk_errors(submitted(exp.run.dir)):
        if not code.exists():
            temporary = temporary_beside(code)
            try:
                for name, content in files.items():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    (temporary / name).write_bytes(content)
                temporary.rename(code)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        write_text(experiment, settings)
    return Snapshot(code.resolve(), experiment.resolve())


def _files(source: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted(
            path
            for path in (source / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
        )


def _digest(contents: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
