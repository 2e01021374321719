"""An artefact on disk: shards committed by their sidecars, rolled up in a manifest.

Layout of ``CACHE_DIR/KIND/KEY/``::

    shard-00000.3f9a1c02.safetensors   data; named by its content, so two writers never overwrite each other
    shard-00000.json                   sidecar: the commit. Names the shard's files with size and hash
    manifest.json                      roll-up, written when every shard stands
    refs/                              one file for each run that uses the artefact

A file that no sidecar names is debris of a killed writer and is never read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refbert_dist.artifacts.disk import (
    atomic_path,
    explain_disk_errors,
    fsync_path,
    read_json,
    temporary_beside,
    write_json,
)
from refbert_dist.artifacts.keys import hash_file
from refbert_dist.errors import RefusedError, UserError

FORMAT_VERSION = 1

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Damage:
    """One thing that verification found wrong."""

    shard: str
    reason: str


class Artifact:
    """One artefact directory; every read and write of its files goes through here."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # -- writing ---------------------------------------------------------------------------------------------------

    def commit(self, shard: int, files: Mapping[str, Write], meta: Mapping[str, Any]) -> bool:
        """Write the files of a shard (ending -> function that writes a path) and commit them.

        Returns False when another writer has committed the shard first; its files then stand and ours are removed.
        """
        name = shard_name(shard)
        sidecar = self.path / f"{name}.json"
        described: dict[str, dict[str, Any]] = {}
        with explain_disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for ending, write in files.items():
                temporary = temporary_beside(self.path / f"{name}.{ending}")
                try:
                    write(temporary)
                    fsync_path(temporary)
                    digest = hash_file(temporary)
                    size = temporary.stat().st_size
                    final = self.path / f"{name}.{digest[:8]}.{ending}"
                    temporary.replace(final)
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        temporary.unlink()
                described[ending] = {"file": final.name, "bytes": size, "xxh3": digest}
            fsync_path(self.path)
            temporary = temporary_beside(sidecar)
            try:
                temporary.write_text(json.dumps({"shard": shard, "files": described, **meta}) + "\n", encoding="utf-8")
                fsync_path(temporary)
                # link() fails where the name exists: the first commit wins, whoever comes second.
                os.link(temporary, sidecar)
                won = True
            except FileExistsError:
                won = False
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
            fsync_path(self.path)
        if not won:
            standing = {item["file"] for item in read_json(sidecar)["files"].values()}
            for item in described.values():
                if item["file"] not in standing:
                    (self.path / item["file"]).unlink(missing_ok=True)
        return won

    def finish(self, shards: int, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest once all ``shards`` are committed; returns it."""
        sidecars = [self.sidecar(index) for index in range(shards)]
        missing = [shard_name(index) for index, sidecar in enumerate(sidecars) if sidecar is None]
        if missing:
            raise RefusedError(
                f"{self.path} lacks {missing[0]} and cannot be finished; run the command again to write it"
            )
        stand = [sidecar for sidecar in sidecars if sidecar is not None]
        content = {
            "format_version": FORMAT_VERSION,
            "shards": shards,
            "samples": sum(sidecar["samples"] for sidecar in stand),
            "tokens": sum(sidecar.get("tokens", 0) for sidecar in stand),
            "bytes": sum(item["bytes"] for sidecar in stand for item in sidecar["files"].values()),
            **manifest,
        }
        write_json(self.path / "manifest.json", content)
        return content

    def register(self, run_dir: Path) -> None:
        """Note in ``refs/`` that a run uses this artefact, so that garbage collection leaves it."""
        name = str(run_dir.resolve()).strip("/").replace("/", "%")
        target = self.path / "refs" / name
        if not target.exists():
            with atomic_path(target) as temporary:
                temporary.write_text(f"{run_dir.resolve()}\n", encoding="utf-8")

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """True once the manifest stands."""
        return (self.path / "manifest.json").exists()

    def manifest(self) -> dict[str, Any]:
        """The manifest; a missing, broken or newer one is one sentence."""
        path = self.path / "manifest.json"
        try:
            content: dict[str, Any] = read_json(path)
        except FileNotFoundError:
            raise RefusedError(
                f"{self.path} has no manifest.json, so it is not finished; run the command again"
            ) from None
        except ValueError:
            raise RefusedError(f"{path} is not valid JSON; remove {self.path} and run the command again") from None
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format_version {version}, this program reads {FORMAT_VERSION}; "
                "use the program version that wrote it, or another cache.dir"
            )
        return content

    def sidecar(self, shard: int) -> dict[str, Any] | None:
        """The sidecar of a committed shard, or None."""
        try:
            content: dict[str, Any] = read_json(self.path / f"{shard_name(shard)}.json")
        except FileNotFoundError:
            return None
        return content

    def files(self, ending: str) -> list[Path]:
        """The committed files with this ending, in shard order."""
        found = []
        for shard in range(self.manifest()["shards"]):
            sidecar = self.sidecar(shard)
            if sidecar is None:
                raise RefusedError(f"{self.path / shard_name(shard)}.json is gone; run the command again to rebuild it")
            found.append(self.path / sidecar["files"][ending]["file"])
        return found

    def verify(self, full: bool) -> Iterator[Damage]:
        """Yield what is wrong: sizes and presence, and with ``full`` the content hash of every file."""
        for shard in range(self.manifest()["shards"]):
            name = shard_name(shard)
            try:
                sidecar = self.sidecar(shard)
            except ValueError:
                yield Damage(name, "its sidecar is not valid JSON")
                continue
            if sidecar is None:
                yield Damage(name, "its sidecar is missing")
                continue
            for item in sidecar["files"].values():
                path = self.path / item["file"]
                if not path.exists():
                    yield Damage(name, f"{item['file']} is missing")
                elif path.stat().st_size != item["bytes"]:
                    yield Damage(name, f"{item['file']} has {path.stat().st_size} bytes instead of {item['bytes']}")
                elif full and hash_file(path) != item["xxh3"]:
                    yield Damage(name, f"{item['file']} has another content than was committed")


def shard_name(shard: int) -> str:
    """Name under which a shard is reported and its files begin."""
    return f"shard-{shard:05d}"


def save_tensors(arrays: Mapping[str, np.ndarray]) -> Write:
    """A writer of a safetensors file."""

    def write(path: Path) -> None:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    return write


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Memory-mapped arrays of a safetensors file: a slice costs microseconds and reads only its own pages."""
    kinds = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
    data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    arrays = {}
    for name, item in header.items():
        if name != "__metadata__":
            start, stop = (8 + header_bytes + offset for offset in item["data_offsets"])
            arrays[name] = data[start:stop].view(kinds[item["dtype"]]).reshape(item["shape"])
    return arrays
