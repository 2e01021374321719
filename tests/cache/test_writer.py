"""Building the cache: again, after a kill, by one process and by two, where there is no room."""

import re
import shutil
import time
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from tiny import tiny_experiment, tiny_teacher

from refbert_dist import pipeline
from refbert_dist.artifacts import Artifact, disk, map_tensors
from refbert_dist.cache.contract import states_artifact
from refbert_dist.cache.writer import build_states
from refbert_dist.config import Experiment, to_yaml
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import process_group
from refbert_dist.engine.world import World, free_port
from refbert_dist.errors import UserError

ALONE = World(0, 1, 0)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def data_of(artifact: Artifact) -> dict[str, bytes]:
    """Every file of the artefact but the notes of who uses it."""
    return {path.name: path.read_bytes() for path in artifact.path.iterdir() if path.is_file()}


@pytest.fixture
def prepared(tmp_path: Path) -> Experiment:
    exp = tiny_experiment(tmp_path, "task=null", "references.count=0", "corpus.max_documents=3")
    pipeline.run(exp, ["prepare"])
    return exp


def test_a_second_build_touches_nothing(prepared: Experiment) -> None:
    pipeline.run(prepared, ["cache-general"])
    artifact = states_artifact(prepared, "general")
    before = files_of(prepared.cache.dir)
    assert build_states(prepared, "general", ALONE) == artifact.manifest()
    assert files_of(prepared.cache.dir) == before
    assert list(artifact.verify(full=True)) == []


def test_only_lost_shards_are_built_again(prepared: Experiment) -> None:
    pipeline.run(prepared, ["cache-general"])
    artifact = states_artifact(prepared, "general")
    before, times = data_of(artifact), files_of(artifact.path)
    for path in (artifact.path / "shard-00001.json", artifact.path / "manifest.json"):
        path.unlink()
    assert pipeline.missing_stages(prepared, ["cache-general"])
    build_states(prepared, "general", ALONE)
    assert data_of(artifact) == before
    after = files_of(artifact.path)
    assert {Path(name).name for name in times if after[name] != times[name]} == {
        "manifest.json",
        "shard-00001.json",
        artifact.files("safetensors")[1].name,
    }


def test_shards_of_another_teacher_are_not_continued(prepared: Experiment, tmp_path: Path) -> None:
    """A teacher may change in place between an interrupted build and its continuation."""
    pipeline.run(prepared, ["cache-general"])
    artifact = states_artifact(prepared, "general")
    for path in (artifact.path / "shard-00000.json", artifact.path / "manifest.json"):
        path.unlink()
    before = files_of(artifact.path)
    shutil.rmtree(tmp_path / "teacher")
    tiny_teacher(tmp_path / "teacher", seed=9)
    with process_group(60), pytest.raises(UserError, match="made with another teacher"):
        build_states(prepared, "general", ALONE)
    assert files_of(artifact.path) == before


def test_a_build_that_cannot_fit_is_refused_before_it_starts(
    prepared: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = TokenSet.open(tokens_artifact(prepared, "corpus"))
    needed = int(tokens.lengths.sum()) * 4 * 32 * 2  # 4 layers of 32 float16 numbers a token
    with monkeypatch.context() as patched:
        usage = shutil.disk_usage(prepared.cache.dir)
        patched.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
        with pytest.raises(UserError, match=r"the teacher cache needs .* GB are free.*cache\.dir"):
            pipeline.run(prepared, ["cache-general"])
        assert not states_artifact(prepared, "general").path.exists()
        patched.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=needed))
        pipeline.run(prepared, ["cache-general"])
    stored = sum(path.stat().st_size for path in states_artifact(prepared, "general").files("safetensors"))
    assert needed <= stored <= 1.2 * needed, "what is asked for must be about what is written"


def test_every_state_goes_through_the_inference_engine(prepared: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is wrapped by DeepSpeed, in evaluation mode and without gradients."""
    from refbert_dist.cache import forward

    seen: list[tuple[bool, bool]] = []
    start = forward.teacher_engine

    def watched(module: torch.nn.Module, *arguments: object) -> object:
        engine = start(module, *arguments)
        module.register_forward_pre_hook(lambda *_: seen.append((module.training, torch.is_grad_enabled())))
        return engine

    monkeypatch.setattr(forward, "teacher_engine", watched)
    pipeline.run(prepared, ["cache-general"])
    assert len(seen) >= states_artifact(prepared, "general").manifest()["shards"]
    assert set(seen) == {(False, False)}


# -- several processes -----------------------------------------------------------------------------------------------


def many_shards(root: Path, name: str) -> Experiment:
    """One of several builds of the same cache, each in directories of its own; a sample or two in a shard."""
    exp = tiny_experiment(
        root,
        "task=null",
        "references.count=0",
        "corpus.max_documents=8",
        "cache.shard_tokens=96",
        f"run.dir={root / name}",
        f"cache.dir={root / name / 'cache'}",
    )
    pipeline.run(exp, ["prepare"])
    (exp.run.dir / "experiment.yaml").write_text(to_yaml(exp))
    return exp


def build(exp: Experiment, processes: int, group_size: int) -> Artifact:
    """The cache, made by so many processes."""
    forked.run(processes, exp.run.dir / "logs", forked.stage, "cache-general", exp.run.dir, group_size=group_size)
    return states_artifact(exp, "general")


@pytest.mark.dist
def test_one_two_or_three_processes_write_the_same_bytes(tmp_path: Path) -> None:
    written = {}
    for count in (1, 2, 3):
        exp = many_shards(tmp_path, f"by{count}")
        written[count] = data_of(build(exp, count, group_size=1))
    assert len(written[1]) > 100
    assert written[1] == written[2] == written[3]


@pytest.mark.dist
def test_two_processes_can_hold_one_teacher_together(tmp_path: Path) -> None:
    """ZeRO-3 sums in another order, so the states agree to float32's rounding and then to float16's."""
    alone, together = many_shards(tmp_path, "alone"), many_shards(tmp_path, "together")
    one, other = build(alone, 1, group_size=1), build(together, 2, group_size=2)
    log = (together.run.dir / "logs" / "0.log").read_text()
    here, whole = map(int, re.search(r"over 2 processes: (\d+) of its (\d+) weights", log).groups())
    assert whole > 900_000 and 0.5 * whole <= here < 0.51 * whole
    assert one.manifest()["ingredients"] == other.manifest()["ingredients"]
    assert list(other.verify(full=True)) == []
    for first, second in zip(one.files("safetensors"), other.files("safetensors"), strict=True):
        expected, found = map_tensors(first), map_tensors(second)
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=2.0**-9, atol=1e-5, err_msg=log)


@pytest.mark.dist
@pytest.mark.faults
def test_one_process_or_two_killed_and_continued_write_the_same_bytes(tmp_path: Path) -> None:
    alone = many_shards(tmp_path, "alone")
    whole = build(alone, 1, group_size=1)
    expected, shards = data_of(whole), whole.manifest()["shards"]

    killed = many_shards(tmp_path, "killed")
    artifact = states_artifact(killed, "general")
    log = killed.run.dir / "killed.log"
    worlds = [World(0, 1, group, group, 2) for group in (0, 1)]
    workers = [forked.start(world, free_port(), log, forked.stage, "cache-general", killed.run.dir) for world in worlds]
    try:
        deadline = time.monotonic() + 120
        while len(list(artifact.path.glob("shard-*.json"))) < 6:
            assert all(worker.is_alive() for worker in workers), log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    standing = {path.name: path.read_bytes() for path in artifact.path.glob("shard-*.json")}
    assert 6 <= len(standing) < shards and not artifact.complete

    build(killed, 2, group_size=1)
    assert list(artifact.verify(full=True)) == []
    found = data_of(artifact)
    debris = {name for name in found if name not in expected}
    assert {name: content for name, content in found.items() if name not in debris} == expected
    assert all(found[name] == content for name, content in standing.items())
    assert len(debris) <= 4, "each killed writer may leave its open files, which no sidecar names, and nothing more"
