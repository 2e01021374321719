"""A crash at every step of writing: whatever is vouched for is whole, and the next run makes up what is missing."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from crashes import LOSSES, crash

from refbert_dist.artifacts import Artifact, WorkList, save_tensors
from refbert_dist.artifacts.garbage import remove, survey

NAMES = ["recipe", "shard-00000", "shard-00001"]


def build(root: Path) -> Artifact:
    """What every stage does: work off the list, then finish."""
    artifact = Artifact(root / "kind" / "key")
    if artifact.complete:
        return artifact
    for name in WorkList(artifact, NAMES):
        number = NAMES.index(name)
        arrays = {"x": np.full((50, 3), number, np.float16)}
        files = {"safetensors": save_tensors(arrays), "bin": lambda path, n=number: path.write_bytes(bytes([n]) * 99)}
        artifact.commit(name, files if number else {}, {"samples": number})
    artifact.finish(NAMES, {"kind": "test"})
    return artifact


def contents(artifact: Artifact) -> dict[str, bytes]:
    """All but what is nobody's: temporary files and claims."""
    files = [path for path in artifact.path.iterdir() if path.is_file() and not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in files if path.suffix != ".claim"}


@pytest.fixture
def disk() -> Iterator[Path]:
    """Where flushing costs nothing, if there is such a place: some thousand flushes of a real disk take minutes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def whole(disk: Path) -> dict[str, bytes]:
    """An uninterrupted build."""
    return contents(build(disk / "whole"))


def at_every_step(disk: Path, loss: str, start: Callable[[Path], None], work: Callable[[Path], object]) -> list[Path]:
    """One folder for each step before which the work was ended."""
    start(disk / "count")
    steps = crash(partial(work, disk / "count"), disk / "count", disk / "graves", None, loss)
    assert steps
    folders = []
    for last in range(1, steps + 1):
        root = disk / str(last)
        start(root)
        assert crash(partial(work, root), root, disk / f"graves-{last}", last, loss) is None
        folders.append(root)
    return folders


@pytest.mark.faults
@pytest.mark.parametrize("loss", LOSSES)
def test_writing_can_be_cut_off_anywhere(disk: Path, whole: dict[str, bytes], loss: str) -> None:
    folders = at_every_step(disk, loss, lambda root: root.mkdir(), build)
    assert len(folders) > 50
    finished = 0
    for root in folders:
        artifact = Artifact(root / "kind" / "key")
        assert list(artifact.verify(full=True)) == [], root
        finished += artifact.complete
        assert contents(build(root)) == whole, root
        assert list(artifact.verify(full=True)) == [], root
    assert 0 < finished < len(folders)


@pytest.mark.faults
@pytest.mark.parametrize("loss", LOSSES)
def test_taking_a_damaged_shard_back_can_be_cut_off_anywhere(disk: Path, whole: dict[str, bytes], loss: str) -> None:
    damaged = next(name for name in whole if name.startswith("shard-00001.") and name.endswith(".bin"))

    def start(root: Path) -> None:
        artifact = build(root)
        artifact.register(disk)
        (artifact.path / damaged).write_bytes(b"\0" * 99)

    def repair(root: Path) -> None:
        artifact = Artifact(root / "kind" / "key")
        artifact.discard({damage.shard for damage in artifact.verify(full=True)} - {"manifest"})
        build(root)

    for root in at_every_step(disk, loss, start, repair):
        artifact = Artifact(root / "kind" / "key")
        if artifact.complete:
            found = {damage.shard for damage in artifact.verify(full=True)}
            assert found <= {"shard-00001"} and bool(found) == (contents(artifact) != whole), root
            repair(root)
        else:
            build(root)  # Whoever goes on without knowing that a repair was begun must do no harm.
        assert contents(artifact) == whole, root


@pytest.mark.faults
def test_deleting_can_be_cut_off_anywhere(disk: Path) -> None:
    (disk / "runs").mkdir()

    def collect(root: Path) -> None:
        for holding in survey(root)[0]:
            assert holding.deletable
            remove(holding)

    folders = at_every_step(disk, "nothing", lambda root: build(root).register(disk / "runs" / "gone"), collect)
    standing = 0
    for root in folders:
        artifact = Artifact(root / "kind" / "key")
        if artifact.path.exists():
            standing += 1
            assert artifact.complete and list(artifact.verify(full=True)) == []
        collect(root)
        assert list((root / "kind").iterdir()) == []
    assert 0 < standing < len(folders)
