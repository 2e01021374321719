"""A model folder: what lies in it, and whether it is still what was written.

``manifest.json`` says what the model is and holds size and hash of every file but those of the bank, which has a
description of its own (:mod:`refbert_dist.bank.reader`). The model's code lies in the folder as well, so that
transformers can load the model where this package is not installed (``trust_remote_code=True``).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from refbert_dist.artifacts import hash_file, write_json
from refbert_dist.artifacts.seals import read_sealed, sealed
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.models import configuration_refbert, modeling_refbert

if TYPE_CHECKING:
    from refbert_dist.models.configuration_refbert import RefBertConfig

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
BANK = "bank"
CARD = "README.md"

LOOKUP = Path(__file__).with_name("bm25s_lookup.py")
"""Looks references up without this package."""

_CODE = (Path(configuration_refbert.__file__), Path(modeling_refbert.__file__))
_AUTO_MAP = {
    "AutoConfig": "configuration_refbert.RefBertConfig",
    "AutoModel": "modeling_refbert.RefBertModel",
    "AutoModelForSequenceClassification": "modeling_refbert.RefBertForSequenceClassification",
}


def add_code(folder: Path, config: RefBertConfig, with_lookup: bool) -> None:
    """Copy into a folder what stands for this package where it is not installed.

    The model's code, of which ``config`` then says what to load, and a file that looks references up.
    """
    for path in (*_CODE, LOOKUP) if with_lookup else _CODE:
        shutil.copyfile(path, folder / path.name)
    config.auto_map = dict(_AUTO_MAP)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Seal a finished folder: ``content`` and the hashes of its files."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3": hash_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and (folder / BANK) not in path.parents
    }
    write_json(folder / MANIFEST, sealed({"format_version": FORMAT_VERSION, **content, "files": files}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What :func:`write_manifest` wrote; nothing is hashed but itself.

    Raises:
        UserError: the folder is none of a model, or another version of this program wrote it.
        RefusedError: the manifest has changed.
    """
    try:
        return read_sealed(folder / MANIFEST, FORMAT_VERSION, "export the model again")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} has no {MANIFEST}; give the export folder of a finished run (RUN_DIR/export)"
        ) from None
    except ValueError as error:
        raise RefusedError(
            f"the model {folder} is damaged: {MANIFEST} has changed ({error}); export the model again"
        ) from None


def verify_folder(folder: Path) -> dict[str, Any]:
    """Hash everything outside the bank, except the card, which people may edit; returns the manifest.

    Raises as :func:`read_manifest`, and :class:`RefusedError` for a file that is missing or has changed.
    """
    manifest = read_manifest(folder)
    for name, item in manifest["files"].items():
        path = folder / name
        if name == CARD:
            continue
        if not path.is_file():
            raise RefusedError(f"the model {folder} lacks {name}; export the model again")
        if path.stat().st_size != item["bytes"] or hash_file(path) != item["xxh3"]:
            raise RefusedError(f"the model {folder} is damaged: {name} has changed; export the model again")
    return manifest


def projections_fingerprint(folder: Path) -> str:
    """Hash of the weights by which references become keys and values: a bank fits no other ones.

    Taken from the file, so that it does not depend on the precision that a model is loaded in.
    """
    from safetensors import safe_open

    digest = xxhash.xxh3_128()
    with safe_open(folder / "model.safetensors", framework="numpy") as stored:
        for name in sorted(stored.keys()):
            part = name.partition("encoder.layer.0.attention.self.")[2]
            if part.startswith(("reference_", "key.", "value.")):
                digest.update(part.encode())
                digest.update(stored.get_tensor(name).tobytes())
    return digest.hexdigest()
