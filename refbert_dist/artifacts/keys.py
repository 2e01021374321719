"""Names of artefacts: recipe keys (what is asked for) and content fingerprints (what came out)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

READ_BYTES = 1 << 22


def recipe_key(kind: str, recipe: Mapping[str, Any]) -> str:
    """Hash of a configuration and of the keys of its inputs: known before anything is computed; names the folder."""
    text = json.dumps({"kind": kind, **recipe}, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """Content hash (xxh3, 128 bits) of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_strings(parts: Iterable[str]) -> str:
    """Content hash of a sequence of strings; their borders count."""
    digest = xxhash.xxh3_128()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def describe_files(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Path, size, time and content hash of source files, to be kept in a manifest."""
    return [
        {"path": str(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "xxh3": hash_file(path)}
        for path in paths
        for stat in [path.stat()]
    ]


def changed_file(described: Iterable[Mapping[str, Any]]) -> str | None:
    """The first described file whose content is another now; only one whose size or time differs is read."""
    for item in described:
        path = Path(item["path"])
        if not path.exists():
            # A source that was moved away after it was read does not make the artefact wrong.
            continue
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (item["bytes"], item["mtime_ns"]):
            continue
        if stat.st_size != item["bytes"] or hash_file(path) != item["xxh3"]:
            return str(path)
    return None
