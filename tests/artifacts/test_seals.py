"""A sealed file vouches for every byte of itself."""

import json
from pathlib import Path

import pytest

from refbert_dist.artifacts.disk import write_json
from refbert_dist.artifacts.seals import FORMAT_VERSION, read_sealed, sealed

CONTENT = {
    "format_version": FORMAT_VERSION,
    "names": ["a", "b"],
    "text": "é\u007f\\",
    "rate": 1e-30,
    "big": 1e22,
    "n": None,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_json(tmp_path / "file.json", sealed(CONTENT))
    return tmp_path / "file.json"


def test_it_comes_back_as_it_was(path: Path) -> None:
    assert read_sealed(path) == CONTENT


@pytest.mark.faults
def test_every_flipped_bit_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(ValueError):
                read_sealed(path)


@pytest.mark.faults
def test_every_lost_end_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError):
            read_sealed(path)


@pytest.mark.parametrize("content", [[], 3, {}, {"seal": None}, CONTENT, {**CONTENT, "seal": "0" * 32}])
def test_anything_else_is_refused(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError):
        read_sealed(path)
