"""Only what can be accounted for is ever deleted."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from refbert_dist.artifacts import Artifact, WorkList, save_tensors
from refbert_dist.artifacts.garbage import Holding, debris, existence, remove, survey, sweep

NAMES = ["shard-00000", "shard-00001"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    return tmp_path / "runs"


def build(cache: Path, key: str, *users: Path) -> Artifact:
    artifact = Artifact(cache / "kind" / key)
    for number, name in enumerate(NAMES):
        artifact.commit(name, {"safetensors": save_tensors({"x": np.full(9, number, np.float32)})}, {})
    artifact.finish(NAMES, {})
    for run_dir in users:
        artifact.register(run_dir)
    return artifact


def holding(cache: Path, name: str) -> Holding:
    return {holding.name: holding for holding in survey(cache)[0]}[name]


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def age(path: Path, days: float) -> None:
    then = path.lstat().st_mtime - days * 86400
    os.utime(path, (then, then), follow_symlinks=False)


def test_only_artefacts_whose_runs_are_all_gone_can_be_deleted(cache: Path, runs: Path) -> None:
    build(cache, "used", runs / "one")
    build(cache, "shared", runs / "one", runs / "gone")
    build(cache, "abandoned", runs / "gone", runs / "gone too")
    build(cache, "unregistered")
    build(cache, "unclear", runs / "gone", Path("/no-such-file-system/run"))
    found, others = survey(cache)
    assert {holding.name: holding.deletable for holding in found} == {
        "kind/abandoned": True,
        "kind/shared": False,
        "kind/unclear": False,
        "kind/unregistered": False,
        "kind/used": False,
    }
    assert others == []
    abandoned = holding(cache, "kind/abandoned")
    files = [path for path in abandoned.path.rglob("*") if path.is_file()]
    assert (abandoned.files, abandoned.bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert remove(abandoned)
    assert {path.name for path in (cache / "kind").iterdir()} == {"shared", "unclear", "unregistered", "used"}


def test_what_a_run_has_come_to_use_since_is_kept(cache: Path, runs: Path) -> None:
    artifact = build(cache, "key", runs / "gone")
    before = everything(cache)
    listed = holding(cache, "kind/key")
    artifact.register(runs / "two")
    assert not remove(listed)
    assert before < everything(cache) and artifact.complete and list(artifact.verify(full=True)) == []


def test_what_somebody_is_writing_is_kept(cache: Path, runs: Path) -> None:
    artifact = build(cache, "key", runs / "gone")
    artifact.discard(NAMES[:1])
    name = WorkList(artifact, NAMES).next()  # a run that registers when it has finished
    assert holding(cache, "kind/key").busy and not holding(cache, "kind/key").deletable
    age(artifact.path / f"{name}.claim", 1.1)
    assert holding(cache, "kind/key").deletable


def test_an_interrupted_deletion_is_continued(cache: Path, runs: Path) -> None:
    artifact = build(cache, "key", runs / "gone")
    doomed = artifact.path.rename(artifact.path.with_name(".key.0123456789ab.doomed"))
    shutil.rmtree(doomed / "refs")
    (listed,) = survey(cache)[0]
    assert listed.deletable and remove(listed)
    assert everything(cache) == {"kind"}


def test_other_things_in_the_cache_directory_are_listed_and_left(cache: Path, runs: Path, tmp_path: Path) -> None:
    elsewhere = build(tmp_path / "elsewhere", "key", runs / "gone").path
    (cache / "kind").mkdir(parents=True)
    (cache / "notes.txt").write_text("mine")
    (cache / "kind" / "notes.txt").write_text("mine")
    (cache / "kind" / "link").symlink_to(elsewhere)
    (cache / "linked").symlink_to(elsewhere.parent)
    assert survey(cache) == ([], [cache / path for path in ("kind/link", "kind/notes.txt", "linked", "notes.txt")])


def test_a_cache_directory_that_is_not_there_holds_nothing(cache: Path) -> None:
    assert survey(cache) == ([], [])


def test_whether_a_run_exists_is_not_guessed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert existence(runs / "one") == "exists"
    assert existence(runs / "gone") == "gone"
    (runs / "file").touch()
    assert existence(runs / "file" / "below") == "gone"
    monkeypatch.chdir(runs.parent)
    assert existence(Path("runs/gone")) == "unknown", "relative to what?"
    assert existence(Path("/no-such-file-system/run")) == "unknown"


LITTER = {
    ".shard-00001.safetensors.0123456789ab.tmp": b"half",
    "shard-00001.01234567.safetensors": b"never committed",
    "shard-00007.01234567.safetensors": b"nor this",
}


@pytest.mark.faults
def test_debris_of_killed_writers_is_found_a_day_later(cache: Path, runs: Path) -> None:
    artifact = build(cache, "key", runs / "one")
    before = everything(cache)
    for name, content in LITTER.items():
        (artifact.path / name).write_bytes(content)
    (artifact.path / "shard-00007.claim").symlink_to("host+1+2+3")
    unfinished = artifact.path.with_name(".key.0123456789ab.tmp")
    (unfinished / "inside").mkdir(parents=True)
    (unfinished / "inside" / "model").touch()
    assert debris(holding(cache, "kind/key")) == [], "its writer may be alive"
    paths = [*(artifact.path / name for name in LITTER), artifact.path / "shard-00007.claim"]
    for path in [*artifact.path.rglob("*"), unfinished, *unfinished.rglob("*")]:
        age(path, 1.1)
    age(unfinished / "inside" / "model", -1)
    assert debris(holding(cache, "kind/key")) == sorted(paths)
    age(unfinished / "inside" / "model", 1.1)
    assert debris(holding(cache, "kind/key")) == sorted([*paths, unfinished])
    for path in debris(holding(cache, "kind/key")):
        sweep(path)
    assert everything(cache) == before
    assert list(artifact.verify(full=True)) == []


@pytest.mark.faults
def test_what_cannot_be_accounted_for_is_no_debris(cache: Path, runs: Path) -> None:
    damaged, unregistered = build(cache, "damaged", runs / "one"), build(cache, "unregistered")
    (damaged.path / "shard-00000.json").write_text("{}")
    for name in LITTER:
        (unregistered.path / name).touch()
    model = Artifact(cache / "models" / "key")
    model.register(runs / "one")
    for name in ("model.safetensors", "config.json", "training.json", "tokenizer.json", "a.0123456789.bin"):
        (model.path / name).write_text("{}")
    for path in cache.rglob("*"):
        age(path, 9)
    assert [debris(holding) for holding in survey(cache)[0]] == [[], [], []]
