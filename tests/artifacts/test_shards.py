import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refbert_dist.artifacts import Artifact, map_tensors, read_json, save_tensors, sealed, shard_name
from refbert_dist.artifacts.disk import require_free_space, write_json
from refbert_dist.errors import RefusedError, UserError

META = {"samples": 2, "tokens": 5}


def write(artifact: Artifact, shard: int, value: float = 1.0) -> bool:
    return artifact.commit(
        shard_name(shard), {"safetensors": save_tensors({"x": np.full((5, 3), value, np.float16)})}, META
    )


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    made = Artifact(tmp_path / "kind" / "key")
    for shard in range(3):
        assert write(made, shard, float(shard))
    made.finish([shard_name(i) for i in range(3)], {"kind": "test"})
    return made


def test_manifest_rolls_up_what_the_sidecars_say(artifact: Artifact) -> None:
    manifest = artifact.manifest()
    assert (manifest["shards"], manifest["samples"], manifest["tokens"]) == (3, 6, 15)
    assert manifest["bytes"] == sum(path.stat().st_size for path in artifact.path.glob("*.safetensors"))


def test_arrays_come_back_memory_mapped_with_their_type(artifact: Artifact) -> None:
    arrays = map_tensors(artifact.files("safetensors")[2])
    assert arrays["x"].dtype == np.float16 and arrays["x"].shape == (5, 3)
    assert (arrays["x"] == 2).all()
    assert not arrays["x"].flags.writeable


def test_the_first_commit_wins_and_leaves_no_debris(artifact: Artifact) -> None:
    before = sorted(path.name for path in artifact.path.iterdir())
    assert not write(artifact, 1, 99.0)
    assert (map_tensors(artifact.files("safetensors")[1])["x"] == 1).all()
    assert sorted(path.name for path in artifact.path.iterdir()) == before


def test_a_second_commit_of_the_same_content_leaves_the_first_whole(artifact: Artifact) -> None:
    assert not write(artifact, 1, 1.0)
    assert list(artifact.verify(full=True)) == []


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("out of ideas")

    artifact = Artifact(tmp_path)
    with pytest.raises(RuntimeError):
        artifact.commit("shard-00000", {"safetensors": fail}, META)
    assert list(tmp_path.iterdir()) == []
    assert artifact.sidecar("shard-00000") is None


def test_finish_refuses_while_a_shard_is_missing(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path)
    write(artifact, 0)
    with pytest.raises(RefusedError, match="shard-00001"):
        artifact.finish([shard_name(i) for i in range(2)], {})
    assert not artifact.complete


@pytest.mark.faults
@pytest.mark.parametrize("full", [False, True])
def test_verify_names_only_the_damaged_shard(artifact: Artifact, full: bool) -> None:
    assert list(artifact.verify(full)) == []
    path = artifact.files("safetensors")[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = list(artifact.verify(full))
    assert [damage.shard for damage in found] == (["shard-00001"] if full else [])


@pytest.mark.faults
def test_verify_finds_truncated_and_missing_files_without_hashing(artifact: Artifact) -> None:
    first, second, _ = artifact.files("safetensors")
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    (artifact.path / "shard-00002.json").unlink()
    assert [damage.shard for damage in artifact.verify(False)] == ["shard-00000", "shard-00001", "shard-00002"]


def _write_for_ever(path: Path) -> None:
    artifact = Artifact(path)
    shard = 0
    while True:
        artifact.commit(
            shard_name(shard), {"safetensors": save_tensors({"x": np.full((20000, 8), shard, np.float16)})}, META
        )
        shard += 1


@pytest.mark.faults
def test_a_writer_killed_at_any_moment_leaves_only_whole_shards(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(10):
        artifact = Artifact(tmp_path / str(attempt))
        writer = context.Process(target=_write_for_ever, args=(artifact.path,))
        writer.start()
        while artifact.sidecar("shard-00000") is None:
            pass
        # Spread over the time of one shard, so that writing, renaming and committing are all hit.
        writer.join(0.003 * attempt)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        shards = len(list(artifact.path.glob("shard-*.json")))
        artifact.finish([shard_name(i) for i in range(shards)], {})
        assert list(artifact.verify(full=True)) == []


@pytest.mark.parametrize(("version", "age"), [(99, "a newer"), (1, "an older")])
@pytest.mark.parametrize("name", ["manifest", "shard-00001"])
def test_what_another_version_wrote_is_one_sentence(artifact: Artifact, name: str, version: int, age: str) -> None:
    path = artifact.path / f"{name}.json"
    content = {**read_json(path), "format_version": version}
    del content["seal"]
    write_json(path, sealed(content) if version > 1 else content)  # version 1 had no seals
    with pytest.raises(UserError, match=rf"{name}\.json was written by {age} version .* \(format_version {version}; "):
        list(artifact.verify(full=False))
    assert path.exists()


def test_a_broken_or_missing_manifest_says_so(artifact: Artifact) -> None:
    (artifact.path / "manifest.json").write_text("{")
    with pytest.raises(RefusedError, match="run refbert cache repair"):
        artifact.manifest()
    assert [damage.shard for damage in artifact.verify(full=False)] == ["manifest"]
    (artifact.path / "manifest.json").unlink()
    with pytest.raises(RefusedError, match="not finished"):
        artifact.manifest()


def test_a_lost_manifest_is_damage_only_where_it_once_stood(artifact: Artifact, tmp_path: Path) -> None:
    (artifact.path / "manifest.json").unlink()
    assert list(artifact.verify(full=True)) == [], "not finished yet, as far as anyone knows"
    artifact.register(tmp_path)
    (damage,) = artifact.verify(full=True)
    assert damage.shard == "manifest" and "is missing" in damage.reason


@pytest.mark.faults
def test_of_an_unfinished_artefact_what_stands_is_verified(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path)
    for shard in (0, 2):
        write(artifact, shard)
    artifact.file("shard-00002", "safetensors").write_bytes(b"")
    assert [damage.shard for damage in artifact.verify(full=False)] == ["shard-00002"]


@pytest.mark.faults
def test_a_file_of_any_kind_is_verified_by_its_size(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path)
    artifact.commit("shard-00000", {"bin": lambda path: path.write_bytes(b"1234")}, META)
    assert list(artifact.verify(full=False)) == []
    artifact.file("shard-00000", "bin").write_bytes(b"123")
    (damage,) = artifact.verify(full=False)
    assert "has 3 bytes instead of 4" in damage.reason


@pytest.mark.faults
@pytest.mark.parametrize(
    "damaged", [lambda data: data[:20], lambda data: data[:-1], lambda data: data + b"1", lambda _: b""]
)
def test_arrays_of_a_file_of_another_length_are_refused(artifact: Artifact, damaged: Callable[[bytes], bytes]) -> None:
    path = artifact.files("safetensors")[0]
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(RefusedError, match=r"is damaged \(its (header|arrays) should end at byte \d+"):
        map_tensors(path)


@pytest.mark.faults
def test_verify_looks_into_headers_without_hashing(artifact: Artifact) -> None:
    path = artifact.files("safetensors")[1]
    data = bytearray(path.read_bytes())
    data[1] ^= 1  # the length of the header
    path.write_bytes(data)
    assert [damage.shard for damage in artifact.verify(full=False)] == ["shard-00001"]
    with pytest.raises(RefusedError, match=r"shard-00001.*is damaged .*repair"):
        map_tensors(path)


def test_discarded_shards_can_be_written_again_and_the_others_stand(artifact: Artifact) -> None:
    before = {path.name: path.read_bytes() for path in artifact.path.iterdir()}
    artifact.discard(["shard-00001"])
    assert not artifact.complete and artifact.committed() == {"shard-00000", "shard-00002"}
    assert {path.name.partition(".")[0] for path in artifact.path.iterdir()} == {"shard-00000", "shard-00002"}
    assert write(artifact, 1, 1.0)
    artifact.finish([shard_name(i) for i in range(3)], {"kind": "test"})
    assert {path.name: path.read_bytes() for path in artifact.path.iterdir()} == before


def test_only_the_asked_for_shards_are_verified(artifact: Artifact) -> None:
    for path in artifact.files("safetensors"):
        path.unlink()
    assert [damage.shard for damage in artifact.verify(True, names=["shard-00002"])] == ["shard-00002"]


@pytest.mark.parametrize("name", ["run", "100% sure/run ü", "-".join(["long"] * 40) + "/" + "-".join(["path"] * 40)])
def test_registering_notes_the_run(artifact: Artifact, tmp_path: Path, name: str) -> None:
    run_dir = tmp_path / name
    artifact.register(run_dir)
    assert list(artifact.users()) == [run_dir]
    (note,) = (path for path in (artifact.path / "refs").rglob("*") if path.is_file())
    assert note.read_text().strip() == str(run_dir)
    os.utime(note, (1, 1))
    artifact.register(run_dir)
    artifact.register(tmp_path / "other")
    users = artifact.users()
    assert set(users) == {run_dir, tmp_path / "other"}
    assert users[run_dir] > 1, "registering again notes the time of use"


def test_work_that_cannot_fit_is_refused_beforehand(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "there", 1, "a test")
    with pytest.raises(UserError, match=r"a test needs 1000000000\.00 GB"):
        require_free_space(tmp_path, 10**18, "a test")
