"""A cache that a group shares stays shared, whatever the umask of whoever writes."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refbert_dist.artifacts import Artifact, WorkList, save_tensors, write_json
from refbert_dist.data.tables import save_table

GROUP = 54321 if os.geteuid() == 0 else os.getegid()


@pytest.fixture(autouse=True)
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def build(cache_dir: Path) -> Artifact:
    """Everything that is ever written there."""
    artifact = Artifact(cache_dir / "kind" / "key")
    for name in WorkList(artifact, ["shard-00000"]):
        table = save_table({"text": ["a"]}, {"text": "string"})
        arrays = save_tensors({"x": np.zeros(3, np.float32)})
        artifact.commit(name, {"safetensors": arrays, "parquet": table}, {})
    artifact.finish(["shard-00000"], {})
    artifact.register(cache_dir / "a run")
    write_json(artifact.path / "more.json", {})
    return artifact


def modes(cache_dir: Path) -> dict[str, str]:
    return {str(path.relative_to(cache_dir)): stat.filemode(path.stat().st_mode) for path in cache_dir.rglob("*")}


def test_everything_in_a_shared_folder_is_the_group_s(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, -1, GROUP)
    shared.chmod(0o2775)
    build(shared)
    found = modes(shared)
    assert {path.rpartition(".")[2] for path in found if "." in path} == {"json", "safetensors", "parquet"}
    for path, mode in found.items():
        assert mode == ("drwxrws---" if (shared / path).is_dir() else "-rw-rw----"), path
        assert (shared / path).stat().st_gid == GROUP, path


def test_a_private_folder_stays_private(tmp_path: Path) -> None:
    os.umask(0o002)
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    build(private)
    assert {mode[4:7].lower() for mode in modes(private).values()} == {"---"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to a group that it is not in")
def test_rights_of_one_group_are_not_given_to_another(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, -1, GROUP)
    foreign.chmod(0o0775)  # without setgid, so that what is made in it belongs to the writer's own group
    build(foreign)
    assert {mode[4:7] for mode in modes(foreign).values()} == {"---"}
