"""An artefact on disk: shards committed by their sidecars, rolled up in a manifest.

Layout of ``CACHE_DIR/KIND/KEY/``::

    shard-00000.3f9a1c02.safetensors   data; named by its content, so two writers never overwrite each other
    shard-00000.json                   sidecar: the commit. Names the shard's files with size and hash
    shard-00000.claim                  somebody works on it: a hint, never a lock
    manifest.json                      roll-up, written when every shard stands
    refs/                              one file for each run that uses the artefact; its name says which

A shard's name has no dot; what follows its first dot in a file name belongs to the layout. A file that no sidecar names
is debris of a killed writer and is never read. Sidecars and manifest hold a hash of themselves (``seal``), so that a
flipped bit in them is found as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from refbert_dist.artifacts.damage import Damage, file_damage
from refbert_dist.artifacts.disk import (
    Write,
    explain_disk_errors,
    fsync_path,
    make_folder,
    share_with_group,
    temporary_beside,
    to_json,
    write_json,
    write_text,
)
from refbert_dist.artifacts.keys import hash_file
from refbert_dist.artifacts.seals import FORMAT_VERSION, read_sealed, sealed
from refbert_dist.errors import RefusedError

MANIFEST = "manifest"
REFS = "refs"
NAME_LENGTH = 200
"""Longer names of files in ``refs/`` are cut in folders: a file system allows 255 bytes."""


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
            make_folder(self.path)
            for ending, write in files.items():
                temporary = temporary_beside(self.path / f"{name}.{ending}")
                try:
                    write(temporary)
                    share_with_group(temporary)
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
            (self.path / f"{name}.claim").unlink(missing_ok=True)
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
            temporary.write_text(to_json(sealed(content)), encoding="utf-8")
            share_with_group(temporary)
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
            "shards": sum(bool(sidecar["files"]) for sidecar in sidecars),
            "samples": sum(sidecar.get("samples", 0) for sidecar in sidecars),
            "tokens": sum(sidecar.get("tokens", 0) for sidecar in sidecars),
            "bytes": sum(item["bytes"] for sidecar in sidecars for item in sidecar["files"].values()),
            **manifest,
            "names": list(names),
        }
        write_json(self._manifest_path, sealed(content))
        for entry in self._entries():
            if entry.endswith(".claim"):
                (self.path / entry).unlink(missing_ok=True)
        return self.manifest()

    def discard(self, names: Iterable[str]) -> None:
        """Take shards back, so that the next build writes them again.

        Sidecars go first: a manifest that names a shard without one is refused by every reader, whereas a build that
        goes on without a manifest would trust a damaged shard that still has one. Data goes last.
        """
        with explain_disk_errors(self.path):
            taken_back = set(names)
            for name in taken_back:
                self._sidecar_path(name).unlink(missing_ok=True)
            fsync_path(self.path)
            self._manifest_path.unlink(missing_ok=True)
            for entry in self._entries():
                if entry.partition(".")[0] in taken_back:
                    (self.path / entry).unlink(missing_ok=True)

    def register(self, run_dir: Path) -> None:
        """Note in ``refs/`` that a run uses this artefact, now; garbage collection leaves it as long as the run exists.

        To be called once the artefact is finished: one that has been, but lacks a manifest, counts as damaged.
        """
        name = quote(str(run_dir.resolve()), safe="")
        pieces = [name[start : start + NAME_LENGTH] for start in range(0, len(name), NAME_LENGTH)]
        target = self.path.joinpath(REFS, *pieces)
        if target.exists():
            with contextlib.suppress(PermissionError):  # Another person's note; that it stands is what counts.
                os.utime(target)
        else:
            write_text(target, f"{run_dir.resolve()}\n")

    def users(self) -> dict[Path, float]:
        """The run directories that are registered, with the time of their last use (seconds since the epoch)."""
        refs = self.path / REFS
        notes = [path for path in refs.rglob("*") if path.is_file() and not path.name.startswith(".")]
        # The name counts, not the content: there is nothing in it that a flipped bit could change.
        return {Path(unquote("".join(path.relative_to(refs).parts))): path.stat().st_mtime for path in notes}

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """True once the manifest stands."""
        return self._manifest_path.exists()

    def manifest(self) -> dict[str, Any]:
        """The manifest; a missing, damaged or newer one is one sentence."""
        content = self._read(self._manifest_path)
        if content is None:
            raise RefusedError(f"{self.path} has no manifest.json, so it is not finished; run the command again")
        return content

    def sidecar(self, name: str) -> dict[str, Any] | None:
        """The sidecar of a committed shard, None where it is not; a damaged or newer one is one sentence."""
        return self._read(self._sidecar_path(name))

    def is_committed(self, name: str) -> bool:
        """Whether a shard has a sidecar now, whole or not."""
        return self._sidecar_path(name).exists()

    def committed(self) -> set[str]:
        """Names of all shards that have a sidecar now, whole or not; one listing of the folder."""
        names = {entry.removesuffix(".json") for entry in self._entries() if entry.endswith(".json")}
        return {name for name in names if "." not in name} - {MANIFEST}

    def names(self) -> list[str]:
        """The shards in their order, of a finished artefact."""
        names: list[str] = self.manifest()["names"]
        return names

    def files(self, ending: str) -> list[Path]:
        """The committed files with this ending, in shard order; a shard may have none."""
        sidecars = [self._standing(name) for name in self.names()]
        return [self.path / str(sidecar["files"][ending]["file"]) for sidecar in sidecars if ending in sidecar["files"]]

    def file(self, name: str, ending: str) -> Path:
        """One committed file of a shard."""
        return self.path / str(self._standing(name)["files"][ending]["file"])

    def _standing(self, name: str) -> dict[str, Any]:
        sidecar = self.sidecar(name)
        if sidecar is None:
            raise RefusedError(f"{self._sidecar_path(name)} is gone; run refbert cache repair to write it again")
        return sidecar

    def verify(self, full: bool, names: Iterable[str] | None = None) -> Iterator[Damage]:
        """Yield what is wrong: presence, sizes and headers, or with ``full`` the content hash of every file.

        Of an unfinished artefact the shards that are committed so far are checked. ``names`` checks only these.
        """
        standing = self.committed()
        try:
            standing.update(self.names() if self.complete or self.users() else ())
        except RefusedError:
            what = "does not hold what was written" if self.complete else "is missing, though the artefact was finished"
            yield Damage(MANIFEST, f"manifest.json {what}")
        for name in sorted(standing) if names is None else names:
            yield from self._verify_shard(name, full)

    def _verify_shard(self, name: str, full: bool) -> Iterator[Damage]:
        try:
            sidecar = self.sidecar(name)
        except RefusedError:
            yield Damage(name, "its sidecar does not hold what was written")
            return
        if sidecar is None:
            yield Damage(name, "its sidecar is missing")
            return
        for item in sidecar["files"].values():
            if reason := file_damage(self.path / item["file"], item, full):
                yield Damage(name, reason)

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return read_sealed(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RefusedError(f"{path} is damaged ({error}); run refbert cache repair") from None

    def _entries(self) -> list[str]:
        """Names in the folder; of Wikipedia's cache some 100,000, so no object is made for each."""
        if not self.path.exists():
            return []
        with os.scandir(self.path) as entries:
            return [entry.name for entry in entries]

    @property
    def _manifest_path(self) -> Path:
        return self.path / f"{MANIFEST}.json"

    def _sidecar_path(self, name: str) -> Path:
        return self.path / f"{name}.json"


def shard_name(number: int) -> str:
    """The usual name of a shard."""
    return f"shard-{number:05d}"
