import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from refbert_dist.artifacts import Artifact, WorkList, atomic_path, make_folder, save_tensors, shard_name, write_text
from refbert_dist.errors import UserError

NAMES = [shard_name(number) for number in range(6)]


def write(artifact: Artifact, name: str) -> None:
    array = np.full(20_000, NAMES.index(name), np.uint8)
    text = partial(Path.write_text, data="x" * 3000)
    artifact.commit(name, {"safetensors": save_tensors({"x": array}), "txt": text}, {"samples": 1})


def build(folder: Path) -> Artifact:
    artifact = Artifact(folder / "kind" / "key")
    for name in WorkList(artifact, NAMES):
        write(artifact, name)
    artifact.finish(NAMES, {})
    artifact.register(folder / "run")
    return artifact


def contents(folder: Path) -> dict[str, bytes]:
    """All files but notes of who uses what, which name the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and "refs" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def read_only(small_disk: Path) -> Iterator[Path]:
    """A file system with half an artefact that has become read-only."""
    for name in NAMES[:2]:
        write(Artifact(small_disk / "kind" / "key"), name)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    yield small_disk
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("new, half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_as_deep_as_asked_and_only_once(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    make_folder(deep)
    (deep / "file").touch()
    make_folder(deep)
    assert (deep / "file").exists() and list(tmp_path.iterdir()) == [tmp_path / "a"]
    with pytest.raises(NotADirectoryError):
        make_folder(deep / "file" / "below")


def test_several_may_make_a_folder_and_files_in_it_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def write(number: int) -> None:
        for attempt in range(200):
            start.wait()
            write_text(tmp_path / str(attempt) / "refs" / str(number), "written")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert len(list(tmp_path.glob("*/refs/*"))) == 800


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; the read-only file system below covers the same code")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        write_text(tmp_path / "file", "text")


@pytest.mark.faults
def test_a_read_only_disk_is_one_sentence_and_the_next_run_goes_on(read_only: Path, tmp_path: Path) -> None:
    artifact = Artifact(read_only / "kind" / "key")
    before = contents(read_only)
    for attempt in (
        lambda: build(read_only),
        lambda: write(artifact, NAMES[3]),
        lambda: artifact.finish(NAMES[:2], {}),
        lambda: artifact.discard(NAMES[:1]),
        lambda: artifact.register(tmp_path),
        lambda: Artifact(read_only / "other").commit(NAMES[0], {}, {}),
    ):
        with pytest.raises(
            UserError, match=f"cannot write in {read_only}.*: the file system is read-only; .* elsewhere"
        ):
            attempt()
    assert contents(read_only) == before and list(artifact.verify(full=True)) == []
    subprocess.run(["mount", "-o", "remount,rw", str(read_only)], check=True)
    build(tmp_path / "whole")
    build(read_only)
    assert contents(read_only) == contents(tmp_path / "whole")


@pytest.mark.faults
def test_a_full_disk_is_one_sentence_wherever_it_fills_up_and_the_next_run_goes_on(
    small_disk: Path, tmp_path: Path
) -> None:
    build(tmp_path / "whole")
    failed = 0
    for room in range(0, 220_000, 8192):
        folder, ballast = small_disk / str(room), small_disk / "ballast"
        folder.mkdir()
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        ballast.write_bytes(bytes(max(0, free - room)))
        artifact = Artifact(folder / "kind" / "key")
        try:
            build(folder)
        except UserError as error:
            failed += 1
            assert "no space left on the device; free space there" in str(error)
            assert not artifact.users()
        assert list(artifact.verify(full=True)) == []
        assert not [path for path in folder.rglob(".*") if path.is_file()], "what could not be finished is removed"
        ballast.unlink()
        build(folder)
        assert contents(folder) == contents(tmp_path / "whole")
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert 10 < failed < 27
