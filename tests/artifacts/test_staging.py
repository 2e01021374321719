import os
from pathlib import Path

import pytest

from refbert_dist.artifacts.staging import Staging
from refbert_dist.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "teacher" / "key"
    folder.mkdir(parents=True)
    paths = [folder / f"shard-{number}.safetensors" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
    return paths


def local(staging: Staging) -> set[str]:
    return {path.name for path in staging.folder.iterdir()} - {".lock"}


def test_a_file_is_copied_once(tmp_path: Path, files: list[Path]) -> None:
    staging = Staging(tmp_path / "node", 1000)
    copy = staging.fetch(files[2])
    assert copy.parent == staging.folder and copy.read_bytes() == files[2].read_bytes()
    inode = copy.stat().st_ino
    assert staging.fetch(files[2]) == copy and copy.stat().st_ino == inode


def test_what_was_not_asked_for_longest_makes_way(tmp_path: Path, files: list[Path]) -> None:
    staging = Staging(tmp_path / "node", 250)
    for number, path in enumerate(files[:2]):
        os.utime(staging.fetch(path), (number, number))
    staging.fetch(files[0])  # asked for again, so the other is the older one now
    staging.fetch(files[3])
    assert local(staging) == {"key-shard-0.safetensors", "key-shard-3.safetensors"}


def test_a_removed_copy_stays_readable_for_those_who_have_it_open(tmp_path: Path, files: list[Path]) -> None:
    staging = Staging(tmp_path / "node", 100)
    with staging.fetch(files[0]).open("rb") as stream:
        staging.fetch(files[1])
        assert local(staging) == {"key-shard-1.safetensors"}
        assert stream.read() == files[0].read_bytes()


def test_a_torn_copy_is_made_again_and_debris_makes_way(tmp_path: Path, files: list[Path]) -> None:
    staging = Staging(tmp_path / "node", 150)
    copy = staging.fetch(files[0])
    copy.write_bytes(b"short")
    (staging.folder / ".key-shard-9.safetensors.abc.tmp").write_bytes(b"x" * 100)
    assert staging.fetch(files[0]).read_bytes() == files[0].read_bytes()
    assert local(staging) == {"key-shard-0.safetensors"}


def test_a_file_larger_than_the_room_is_refused(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(UserError, match=r"cache\.staging_gb is 9\.9e-08, but shard-0\.safetensors alone has"):
        Staging(tmp_path / "node", 99).fetch(files[0])
