"""An artefact on disk: shards committed by their sidecars, rolled up in a manifest.

Layout of ``CACHE_DIR/KIND/KEY/``::

    shard-00000.3f9a1c02.safetensors   data; named by its content, so two writers never overwrite each other
    shard-00000.json                   sidecar: the commit. Names the shard's files with size and hash
    shard-00000.claim                  somebody works on it: a hint, never a lock
    manifest.json                      roll-up, written when every shard stands
    refs/                              one file for each run that uses the artefact

A file that no sidecar names is debris of a killed writer and is never read. Sidecars and manifest hold a hash of
themselves (``seal``), so that a flipped bit in them is found as well.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from refbert_dist.artifacts.keys import hash_file, hash_strings
from refbert_dist.errors import RefusedError, UserError

FORMAT_VERSION = 2

MANIFEST = "manifest"
SEAL = "seal"

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Damage:
    """One thing that verification found wrong."""

    shard: str
    """Name of the shard, or ``manifest``."""
    reason: str


class Artifact:
    """One artefact directory; every read and write of its files goes through here."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # -- writing ---------------------------------------------------------------------------------------------------

    def commit(self, name: str, files: Mapping[str, Write], meta: Mapping[str, Any]) -> bool:
        """Write the files of a shard (ending -> function that writes a path) and commit them.

        Returns False when another writer has committed the shard first; its files then stand and ours are removed.
        """
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
            won = self._link_sidecar(name, {"format_version": FORMAT_VERSION, "files": described, **meta})
            fsync_path(self.path)
        if not won:
            standing = self.sidecar(name)
            kept = {item["file"] for item in standing["files"].values()} if standing else set()
            for item in described.values():
                if item["file"] not in kept:
                    (self.path / item["file"]).unlink(missing_ok=True)
        return won

    def _link_sidecar(self, name: str, content: dict[str, Any]) -> bool:
        sidecar = self._sidecar_path(name)
        temporary = temporary_beside(sidecar)
        try:
            temporary.write_text(json.dumps(sealed(content)) + "\n", encoding="utf-8")
            fsync_path(temporary)
            # link() fails where the name exists: the first commit wins, whoever comes second.
            os.link(temporary, sidecar)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        return True

    def finish(self, names: Sequence[str], manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest once all shards ``names`` are committed; returns it."""
        sidecars = []
        for name in names:
            sidecar = self.sidecar(name)
            if sidecar is None:
                raise RefusedError(
                    f"{self.path} lacks {name} and cannot be finished; run the command again to write it"
                )
            sidecars.append(sidecar)
        content = {
            "format_version": FORMAT_VERSION,
            "shards": len(names),
            "samples": sum(sidecar.get("samples", 0) for sidecar in sidecars),
            "tokens": sum(sidecar.get("tokens", 0) for sidecar in sidecars),
            "bytes": sum(item["bytes"] for sidecar in sidecars for item in sidecar["files"].values()),
            **manifest,
            "names": list(names),
        }
        write_json(self._manifest_path, sealed(content))
        for claim in self.path.glob("*.claim"):
            claim.unlink(missing_ok=True)
        return self.manifest()

    def discard(self, names: Iterable[str]) -> None:
        """Take shards back, so that the next build writes them again; the manifest goes first, so nobody trusts it."""
        self._manifest_path.unlink(missing_ok=True)
        for name in names:
            self._sidecar_path(name).unlink(missing_ok=True)
            for path in self.path.glob(f"{name}.*"):
                path.unlink()

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
        return self._manifest_path.exists()

    def manifest(self) -> dict[str, Any]:
        """The manifest; a missing, damaged or newer one is one sentence."""
        try:
            content = read_sealed(self._manifest_path)
        except FileNotFoundError:
            raise RefusedError(
                f"{self.path} has no manifest.json, so it is not finished; run the command again"
            ) from None
        except ValueError as error:
            raise RefusedError(f"{self._manifest_path} is damaged ({error}); run refbert cache repair") from None
        return self._of_this_version(content, self._manifest_path)

    def sidecar(self, name: str) -> dict[str, Any] | None:
        """The sidecar of a committed shard, None where it is not; a damaged or newer one is one sentence."""
        path = self._sidecar_path(name)
        try:
            content = read_sealed(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RefusedError(f"{path} is damaged ({error}); run refbert cache repair") from None
        return self._of_this_version(content, path)

    def committed(self) -> set[str]:
        """Names of the shards that have a sidecar now, whole or not; one listing of the folder."""
        if not self.path.exists():
            return set()
        names = {path.name.removesuffix(".json") for path in self.path.iterdir() if path.suffix == ".json"}
        return {name for name in names if not name.startswith(".")} - {MANIFEST}

    def names(self) -> list[str]:
        """The shards in their order, of a finished artefact."""
        names: list[str] = self.manifest()["names"]
        return names

    def files(self, ending: str) -> list[Path]:
        """The committed files with this ending, in shard order."""
        return [self.file(name, ending) for name in self.names()]

    def file(self, name: str, ending: str) -> Path:
        """One committed file of a shard."""
        sidecar = self.sidecar(name)
        if sidecar is None:
            raise RefusedError(f"{self._sidecar_path(name)} is gone; run refbert cache repair to write it again")
        return self.path / str(sidecar["files"][ending]["file"])

    def verify(self, full: bool) -> Iterator[Damage]:
        """Yield what is wrong: sizes and presence, and with ``full`` the content hash of every file.

        Of an unfinished artefact the shards that are committed so far are checked.
        """
        names: Sequence[str] = sorted(self.committed())
        if self.complete:
            try:
                names = self.names()
            except RefusedError:
                yield Damage(MANIFEST, "manifest.json does not hold what was written")
        for name in names:
            try:
                sidecar = self.sidecar(name)
            except RefusedError:
                yield Damage(name, "its sidecar does not hold what was written")
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

    @property
    def _manifest_path(self) -> Path:
        return self.path / f"{MANIFEST}.json"

    def _sidecar_path(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _of_this_version(self, content: dict[str, Any], path: Path) -> dict[str, Any]:
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format_version {version}, this program reads {FORMAT_VERSION}; "
                "use the program version that wrote it, or another cache.dir"
            )
        return content


def shard_name(number: int) -> str:
    """The usual name of a shard."""
    return f"shard-{number:05d}"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with a hash of itself, as it comes back from JSON."""
    plain = json.loads(json.dumps(content))
    return {**plain, SEAL: hash_strings([json.dumps(plain, sort_keys=True)])}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what :func:`sealed` made; raises ValueError when it is anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    seal = content.pop(SEAL, None)
    if sealed(content)[SEAL] != seal:
        raise ValueError("its content and its hash differ")
    return content


def save_tensors(arrays: Mapping[str, np.ndarray]) -> Write:
    """A writer of a safetensors file."""

    def write(path: Path) -> None:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    return write


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Memory-mapped arrays of a safetensors file: a slice costs microseconds and reads only its own pages."""
    kinds = {
        "F16": np.float16,
        "F32": np.float32,
        "I64": np.int64,
        "I32": np.int32,
        "U8": np.uint8,
        "I8": np.int8,
    }
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
