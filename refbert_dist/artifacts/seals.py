"""JSON files that hold a hash of themselves, so that a flipped bit or a lost end is found in them as well.

The form is the same in every format version; what it seals may differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refbert_dist.artifacts.disk import to_json
from refbert_dist.artifacts.keys import hash_strings
from refbert_dist.errors import UserError

FORMAT_VERSION = 2
"""Of everything that an artefact consists of. Version 1 had no seals."""

SEAL = "seal"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with a hash of itself, as it comes back from JSON."""
    plain = json.loads(json.dumps(content))
    return {**plain, SEAL: hash_strings([to_json(plain)])}


def read_sealed(path: Path, readable: int = FORMAT_VERSION, otherwise: str = "set another cache.dir") -> dict[str, Any]:
    """Read what :func:`sealed` made, without the seal.

    Args:
        path: of the file.
        readable: the ``format_version`` that this program reads.
        otherwise: what a person can do about another one, beside using the program that wrote it.

    Raises:
        ValueError: a single byte differs from what was written.
        UserError: another version of this program wrote it.
    """
    text = path.read_bytes().decode("utf-8")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    seal = content.pop(SEAL, None)
    unsealed = seal is None and content.get("format_version") == 1
    # The text is compared, not only what it says: 1e5 and 1E5, one bit apart, are the same number.
    if not unsealed and to_json(sealed(content)) != text:
        raise ValueError("its content and its hash differ")
    version = content.get("format_version")
    if version != readable:
        age = "a newer" if isinstance(version, int) and version > readable else "an older"
        raise UserError(
            f"{path} was written by {age} version of this program (format_version {version}; this one reads "
            f"{readable}); use that version, or {otherwise}"
        )
    return content
