"""``refbert cache verify``, ``repair`` and ``gc``, as a person meets them."""

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_experiment, tiny_task

from launchers.cache import Mended, find_damage, items_of, mend
from refbert_dist import pipeline
from refbert_dist.artifacts import Artifact, read_json, sealed, write_json
from refbert_dist.cache.contract import states_artifact
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.data.tokens import tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.references.neighbours import neighbours_artifact
from refbert_dist.rundir import open_run

Refbert = Callable[..., tuple[int, str, str]]
State = dict[str, tuple[bytes, int]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of corpus and task: tokens, neighbours, states, the fine-tuned teacher."""
    root = tmp_path_factory.mktemp("cache-commands")
    exp = tiny_experiment(root, "cache.shard_tokens=800", "corpus.max_documents=4")
    pipeline.run(exp, ["retrieve", "cache-general", "cache-task"])
    return root


@pytest.fixture
def exp(original: Path) -> Experiment:
    """The experiment, its cache and run directory as they were, whatever a test before has done to them."""
    exp = tiny_experiment(original, "cache.shard_tokens=800", "corpus.max_documents=4")
    for folder in (exp.cache.dir, exp.run.dir):
        kept = folder.with_name(f"{folder.name}.kept")
        if not kept.exists():
            shutil.copytree(folder, kept)
        shutil.rmtree(folder, ignore_errors=True)  # a test may have deleted it
        shutil.copytree(kept, folder)
    (original / "exp.yaml").write_text(to_yaml(exp))
    return exp


@pytest.fixture
def path(original: Path, exp: Experiment) -> Path:
    """Its file."""
    return original / "exp.yaml"


def state(folder: Path) -> State:
    """Content and time of every file that is part of an artefact."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "refs"]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def contents(state: State) -> dict[str, bytes]:
    return {name: content for name, (content, _) in state.items()}


def rewritten(before: State, after: State) -> set[str]:
    return {Path(name).name.partition(".")[0] for name, (_, time) in after.items() if before[name][1] != time}


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def repaired(exp: Experiment) -> list[Mended]:
    return mend(exp, find_damage(exp, full=True))


# -- verify ------------------------------------------------------------------------------------------------------------


def test_a_whole_cache_passes(path: Path, refbert: Refbert) -> None:
    code, out, err = refbert("cache", "verify", path, "--full")
    assert (code, err) == (0, "")
    assert out.count(" ok ") == 8 and "DAMAGED" not in out
    for words in ("tokens dev", "neighbours train", "teacher states, general", "teacher states, task"):
        assert words in out


@pytest.mark.faults
def test_every_damaged_shard_is_named_even_where_a_manifest_is_damaged(
    path: Path, exp: Experiment, refbert: Refbert
) -> None:
    states, tokens = states_artifact(exp, "general"), tokens_artifact(exp, "corpus")
    spoil(states.file("shard-00001", "safetensors"))
    states.file("shard-00002", "safetensors").unlink()
    (neighbours_artifact(exp, "dev").path / "shard-00000.json").unlink()
    spoil(tokens.path / "manifest.json")
    code, out, err = refbert("cache", "verify", path, "--full")
    assert code == 1 and "4 damaged shard(s)" in err and "run refbert cache repair" in err
    named = [line.strip().partition(": ")[0] for line in out.splitlines() if line.startswith("  ")]
    assert named == [
        str(tokens.path / "manifest"),
        str(neighbours_artifact(exp, "dev").path / "shard-00000"),
        str(states.path / "shard-00001"),
        str(states.path / "shard-00002"),
    ]
    assert "3 damaged shard(s)" in refbert("cache", "verify", path)[2], "a flipped bit is seen by --full only"


@pytest.mark.faults
@pytest.mark.parametrize("label", ["tokens corpus", "neighbours dev", "teacher states, task"])
def test_no_file_of_a_finished_artefact_can_vanish_unseen(exp: Experiment, label: str) -> None:
    (item,) = (item for item in items_of(exp) if item.label == label)
    for path in sorted(path for path in item.artifact.path.iterdir() if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        assert {damage.shard for damage in item.artifact.verify(full=False)} == {path.name.partition(".")[0]}
        path.write_bytes(content)
    assert list(item.artifact.verify(full=True)) == []


@pytest.mark.faults
def test_an_unfinished_cache_is_checked_as_far_as_it_goes(path: Path, exp: Experiment, refbert: Refbert) -> None:
    before = state(exp.cache.dir)
    states = states_artifact(exp, "general")
    for gone in ("manifest.json", "shard-00000.json"):
        (states.path / gone).unlink()
    shutil.rmtree(states.path / "refs")
    code, out, _ = refbert("cache", "verify", path, "--full")
    assert code == 0 and "unfinished" in out
    spoil(states.file("shard-00001", "safetensors"))
    code, out, _ = refbert("cache", "verify", path, "--full")
    assert code == 1 and out.count("shard-00001:") == 1
    code, out, _ = refbert("cache", "repair", path)
    assert code == 0 and "teacher states, general: shard-00001 taken back" in out
    assert not states.complete, "to go on with it is not what was asked for"
    assert refbert("cache", "verify", path, "--full")[0] == 0
    pipeline.run(exp, ["cache-general"])
    assert contents(state(exp.cache.dir)) == contents(before)


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_a_cache_of_a_newer_version_is_one_sentence_and_untouched(
    path: Path, exp: Experiment, refbert: Refbert, command: str
) -> None:
    sidecar = states_artifact(exp, "general").path / "shard-00001.json"
    content = read_json(sidecar)
    del content["seal"]
    write_json(sidecar, sealed({**content, "format_version": 99}))
    before = state(exp.cache.dir)
    code, _, err = refbert("cache", command, path)
    assert code == 2
    assert len(err.splitlines()) == 1 and "written by a newer version of this program (format_version 99" in err
    assert state(exp.cache.dir) == before


def test_dry_runs_only_say_what_they_would_do(path: Path, exp: Experiment, refbert: Refbert) -> None:
    spoil(states_artifact(exp, "general").file("shard-00001", "safetensors"))
    before = state(exp.cache.dir)
    code, out, _ = refbert("cache", "verify", path, "--dry-run")
    assert code == 0 and out.count("would check") == 8
    code, out, _ = refbert("cache", "repair", path, "--dry-run")
    assert code == 0 and "shard-00001" in out and "would be written again" in out
    assert state(exp.cache.dir) == before


# -- repair ------------------------------------------------------------------------------------------------------------


def test_where_nothing_is_damaged_nothing_is_repaired(path: Path, exp: Experiment, refbert: Refbert) -> None:
    before = state(exp.cache.dir)
    code, out, err = refbert("cache", "repair", path)
    assert (code, err) == (0, "") and "nothing to repair" in out
    assert state(exp.cache.dir) == before


@pytest.mark.faults
def test_what_others_are_made_from_is_repaired_first_and_nothing_else_is_touched(exp: Experiment) -> None:
    before = state(exp.cache.dir)
    tokens = tokens_artifact(exp, "corpus")
    shard = tokens.names()[1]
    tokens.file(shard, "parquet").unlink()
    (neighbours_artifact(exp, "corpus").path / "shard-00000.json").unlink()
    spoil(states_artifact(exp, "general").file("shard-00001", "safetensors"))
    assert [(one.item.label, one.name) for one in repaired(exp)] == [
        ("tokens corpus", shard),
        ("neighbours corpus", "shard-00000"),
        ("teacher states, general", "shard-00001"),
    ]
    after = state(exp.cache.dir)
    assert contents(after) == contents(before)
    assert "shard-00002" not in rewritten(before, after) and "shard-00001" in rewritten(before, after)
    wanted = ["retrieve", "cache-general", "cache-task"]
    assert pipeline.missing_stages(exp, wanted) == [], "what was made from it is still valid"


@pytest.mark.faults
@pytest.mark.parametrize("how", [spoil, Path.unlink])
@pytest.mark.parametrize("label", ["tokens corpus", "neighbours train", "teacher states, task"])
def test_a_manifest_is_made_from_its_shards(exp: Experiment, label: str, how: Callable[[Path], None]) -> None:
    before = state(exp.cache.dir)
    (item,) = (item for item in items_of(exp) if item.label == label)
    how(item.artifact.path / "manifest.json")
    (one,) = repaired(exp)
    assert (one.item.label, one.name, one.outcome) == (label, "manifest", "written again")
    after = state(exp.cache.dir)
    assert contents(after) == contents(before)
    assert rewritten(before, after) == {"manifest"}, "no shard is written again"


@pytest.mark.faults
@pytest.mark.parametrize("kinds", [("vectors",), ("vectors", "neighbours")])
def test_vectors_of_the_dense_lookup_are_repaired_as_well(original: Path, kinds: tuple[str, ...]) -> None:
    dense = ("references.retriever=dense", "references.dense_layer=2", "task=null", f"run.dir={original / 'dense'}")
    exp = tiny_experiment(original, "corpus.max_documents=4", f"cache.dir={original / 'dense-cache'}", *dense)
    pipeline.run(exp, ["retrieve"])
    before = state(exp.cache.dir)
    for kind in kinds:
        (folder,) = (exp.cache.dir / kind).iterdir()
        spoil(Artifact(folder).files("safetensors")[0])
    assert [one.item.label for one in repaired(exp)] == [f"{kind} corpus" for kind in kinds]
    assert contents(state(exp.cache.dir)) == contents(before)
    assert not any(find_damage(exp, full=True).values())


@pytest.mark.faults
def test_a_damaged_sidecar_costs_its_shard_only(exp: Experiment) -> None:
    before = state(exp.cache.dir)
    spoil(states_artifact(exp, "task").path / "shard-00000.json")
    (one,) = repaired(exp)
    assert (one.name, one.outcome) == ("shard-00000", "written again, byte for byte")
    after = state(exp.cache.dir)
    assert contents(after) == contents(before)
    assert rewritten(before, after) == {"shard-00000", "manifest"}


@pytest.mark.faults
def test_an_interrupted_repair_is_continued(exp: Experiment) -> None:
    before = state(exp.cache.dir)
    states_artifact(exp, "general").discard(["shard-00001"])
    assert [damage.shard for damage in find_damage(exp, full=False)["teacher states, general"]] == ["manifest"]
    repaired(exp)
    assert contents(state(exp.cache.dir)) == contents(before)


@pytest.mark.faults
def test_what_can_no_longer_be_made_is_not_taken_back(exp: Experiment, original: Path) -> None:
    spoil(tokens_artifact(exp, "train").file("file-00000-00000", "safetensors"))
    before = state(exp.cache.dir)
    kept = original / "kept-task"
    shutil.copytree(original / "task", kept)
    try:
        tiny_task(original / "task", seed=7)
        with pytest.raises(UserError, match=r"train\.tsv has changed"):
            repaired(exp)
    finally:
        shutil.rmtree(original / "task")
        kept.rename(original / "task")
    assert state(exp.cache.dir) == before


@pytest.mark.faults
def test_where_another_command_is_at_work_nothing_is_taken_back(exp: Experiment) -> None:
    spoil(states_artifact(exp, "general").file("shard-00001", "safetensors"))
    before = state(exp.cache.dir)
    with open_run(exp), pytest.raises(UserError, match="in use by another refbert command"):
        repaired(exp)
    assert state(exp.cache.dir) == before


# -- gc ----------------------------------------------------------------------------------------------------------------


def folders(cache_dir: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in cache_dir.glob("*/*")}


def name_of(artifact: Artifact) -> str:
    return f"{artifact.path.parent.name}/{artifact.path.name}"


def test_everything_is_listed_with_its_users(path: Path, exp: Experiment, refbert: Refbert) -> None:
    before = state(exp.cache.dir)
    code, out, _ = refbert("cache", "gc", path, "--yes")
    assert code == 0 and "nothing to delete" in out
    assert state(exp.cache.dir) == before
    for name in folders(exp.cache.dir):
        assert out.count(f"{name} ") == 1
    assert out.count(f"used by: {exp.run.dir}") == len(folders(exp.cache.dir)) == 9
    assert {"models", "neighbours", "teacher", "tokens"} == {name.partition("/")[0] for name in folders(exp.cache.dir)}


def test_only_what_gone_runs_have_registered_is_deleted(path: Path, exp: Experiment, refbert: Refbert) -> None:
    cache_dir = exp.cache.dir
    states, tokens = states_artifact(exp, "general"), tokens_artifact(exp, "corpus")
    tokens.register(exp.run.dir.with_name("run.kept"))
    shutil.rmtree(states_artifact(exp, "task").path / "refs")
    (cache_dir / "notes.txt").write_text("mine")
    shutil.rmtree(exp.run.dir)
    before, all_folders = state(cache_dir), folders(cache_dir)

    code, out, _ = refbert("cache", "gc", path)
    assert code == 0 and "7 artefact(s) of" in out and "can be deleted; run again with --yes to do so" in out
    assert f"run is gone: {exp.run.dir}" in out and "not registered, kept" in out and "notes.txt: no artefact" in out
    assert refbert("cache", "gc", path, "--yes", "--dry-run")[1] == out
    assert state(cache_dir) == before

    code, out, _ = refbert("cache", "gc", path, "--yes")
    assert code == 0 and f"{name_of(states)} deleted" in out
    kept = {name_of(tokens), name_of(states_artifact(exp, "task"))}
    assert kept < all_folders and folders(cache_dir) == kept
    assert list(tokens.verify(full=True)) == [] and (cache_dir / "notes.txt").exists()
    pipeline.run(exp, ["retrieve", "cache-general", "cache-task"])
    made_again = {name for name in before if not name.startswith("models/")}  # nothing asks for the task teacher now
    assert state(cache_dir).keys() == made_again


def test_what_an_existing_run_no_longer_names_is_kept_and_said(path: Path, exp: Experiment, refbert: Refbert) -> None:
    other = tiny_experiment(path.parent, "cache.shard_tokens=900", "corpus.max_documents=4")
    (exp.run.dir / "experiment.yaml").write_text(to_yaml(other))
    before = folders(exp.cache.dir)
    code, out, _ = refbert("cache", "gc", path, "--yes")
    assert code == 0 and "nothing to delete" in out
    lines = out.splitlines()
    for artifact, words in (
        (states_artifact(exp, "general"), "run exists"),
        (tokens_artifact(exp, "dev"), "used by"),
    ):
        (place,) = (number for number, line in enumerate(lines) if line.startswith(name_of(artifact)))
        assert lines[place + 1].strip() == f"{words}: {exp.run.dir}"
    assert folders(exp.cache.dir) == before


@pytest.mark.parametrize(("answer", "deleted"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_person_is_asked(path: Path, exp: Experiment, answer: str, deleted: bool) -> None:
    shutil.rmtree(exp.run.dir)
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    command = [sys.executable, "-m", "launchers.cli", "cache", "gc", str(path)]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=True)
    assert "delete 9 artefact(s)" in done.stdout
    assert folders(exp.cache.dir) == (set() if deleted else folders(exp.cache.dir.with_name("cache.kept")))


@pytest.mark.faults
def test_debris_of_killed_writers_goes_a_day_later(path: Path, exp: Experiment, refbert: Refbert) -> None:
    before = state(exp.cache.dir)
    artifact = states_artifact(exp, "general")
    for name in (".shard-00001.safetensors.0123456789ab.tmp", "shard-00001.01234567.safetensors"):
        (artifact.path / name).write_bytes(b"half")
    assert "nothing to delete" in refbert("cache", "gc", path, "--yes")[1]
    for name in (".shard-00001.safetensors.0123456789ab.tmp", "shard-00001.01234567.safetensors"):
        os.utime(artifact.path / name, (1, 1))
    assert "2 file(s) of killed writers can be deleted" in refbert("cache", "gc", path)[1]
    assert refbert("cache", "gc", path, "--yes")[1].count("tmp deleted") == 1
    assert state(exp.cache.dir) == before
