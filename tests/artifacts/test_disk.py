import os
from pathlib import Path

import pytest

from refbert_dist.artifacts import Artifact, atomic_path, save_tensors, shard_name, write_text
from refbert_dist.errors import UserError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("new, half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; the full-disk test below covers the same code")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        write_text(tmp_path / "file", "text")


@pytest.mark.faults
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(small_disk: Path) -> None:
    import numpy as np

    artifact = Artifact(small_disk / "cache")
    big = save_tensors({"x": np.zeros(700_000, np.uint8)})
    assert artifact.commit("shard-00000", {"safetensors": big}, {"samples": 1})
    with pytest.raises(UserError, match="no space left"):
        artifact.commit("shard-00001", {"safetensors": big}, {"samples": 1})
    assert artifact.sidecar("shard-00001") is None
    artifact.finish([shard_name(i) for i in range(1)], {})
    assert list(artifact.verify(full=True)) == []
    assert not list(artifact.path.glob(".*"))
