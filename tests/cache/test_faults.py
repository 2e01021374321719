"""A real cache under fire: killed writers, flipped bits, lost ends and files. ``make soak`` does it for longer."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import yaml
from forked import stage, start
from tiny import tiny_experiment, tiny_values

from launchers.cache import find_damage, items_of, mend
from refbert_dist import pipeline
from refbert_dist.artifacts import Artifact
from refbert_dist.cache.contract import states_artifact
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.engine.world import World, free_port

SOAK = int(os.environ.get("REFBERT_SOAK", "0"))
KILLS = SOAK or 10
DAMAGES = SOAK or 20
REFBERT = [sys.executable, "-m", "launchers.cli"]

Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Tell a person who soaks what was done."""

    def tell(line: str) -> None:
        if SOAK:
            with capsys.disabled():
                print(f"\nsoak: {line}", flush=True)

    return tell


def contents(cache_dir: Path) -> dict[str, bytes]:
    """All that is part of an artefact: claims, temporary files and what no sidecar names are not."""
    files = [path for path in cache_dir.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(cache_dir)): path.read_bytes() for path in files if path.parent.name != "refs"}


# -- killed writers ----------------------------------------------------------------------------------------------------


def experiment_file(root: Path, name: str) -> Path:
    """One of several builds of the same cache, each in directories of its own; some hundred small shards."""
    values = tiny_values(root)
    values |= {"run": {"dir": str(root / name)}, "task": None, "launch": {"processes": 2, "threads": 1}}
    values["references"]["count"] = 0
    values["corpus"]["max_documents"] = 30
    values["cache"] |= {"dir": str(root / name / "cache"), "shard_tokens": 128}
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def build(path: Path) -> subprocess.Popen[bytes]:
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*REFBERT, "cache", "build", str(path)], stdout=log, stderr=log)


def workers_of(parent: int) -> list[int]:
    """The processes that a command has started and that run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, its_parent = status.read_text().rpartition(")")[2].split()[:2]
            if int(its_parent) == parent and state not in "ZX":
                found.append(int(status.parent.name))
    return found


def join(run_dir: Path, group: int) -> ForkServerProcess:
    """One of two groups of one process, which know nothing of each other."""
    return start(World(0, 1, group, group, 2), free_port(), run_dir / "workers.log", stage, "cache-general", run_dir)


def wait_for_commits(artifact: Artifact, count: int, alive: Callable[[], bool]) -> None:
    """Until so many more shards are committed, or nobody works any more."""
    goal = len(artifact.committed()) + count
    while alive() and len(artifact.committed()) < goal:
        time.sleep(0.001)


def kill_command(path: Path, artifact: Artifact, rng: random.Random) -> None:
    """Start a build with two workers and kill it while they write; they die with it."""
    command = build(path)
    wait_for_commits(artifact, 3, lambda: command.poll() is None)
    time.sleep(rng.uniform(0, 0.1))
    assert command.poll() is None, path.with_suffix(".log").read_text()
    workers = workers_of(command.pid)
    assert len(workers) == 2
    command.kill()
    command.wait()
    while any(Path("/proc", str(worker)).exists() for worker in workers):
        time.sleep(0.01)


@pytest.mark.dist
@pytest.mark.faults
@pytest.mark.timeout(0 if SOAK else 600)
def test_a_build_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, say: Say) -> None:
    alone, killed = experiment_file(tmp_path, "alone"), experiment_file(tmp_path, "killed")
    pipeline.run(load_experiment(alone), ["cache-general"])
    expected = contents(tmp_path / "alone" / "cache")
    run_dir, artifact = tmp_path / "killed", states_artifact(load_experiment(killed), "general")
    shards = states_artifact(load_experiment(alone), "general").manifest()["shards"]
    rng = random.Random(0)

    kill_command(killed, artifact, rng)
    kills = in_the_middle = 1
    assert list(artifact.verify(full=True)) == []

    # From here on two groups work, one of which dies every now and then, and another one joins in its place.
    builds = 1
    workers = [join(run_dir, group) for group in (0, 1)]
    while kills < KILLS:
        wait_for_commits(artifact, rng.randint(1, shards // 5), partial(all_alive, workers))
        time.sleep(rng.uniform(0, 0.1))
        group = rng.randrange(2)
        if workers[group].is_alive():
            workers[group].kill()
            kills += 1
            in_the_middle += bool(artifact.committed()) and not artifact.complete
        workers[group].join()
        assert workers[group].exitcode in (0, -signal.SIGKILL), (run_dir / "workers.log").read_text()
        assert list(artifact.verify(full=True)) == []
        if artifact.complete:
            for worker in workers:
                worker.join()
            assert without_debris(killed) == expected
            builds += 1
            shutil.rmtree(artifact.path)
            workers = [join(run_dir, group) for group in (0, 1)]
        else:
            workers[group] = join(run_dir, group)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, (run_dir / "workers.log").read_text()
    assert artifact.complete and list(artifact.verify(full=True)) == []
    assert without_debris(killed) == expected
    assert in_the_middle > KILLS // 2, "most kills must fall where there is something to lose"
    say(
        f"{kills} SIGKILLs over {builds} builds of {shards} shards by 2 processes, {in_the_middle} of them between the "
        "first shard and the last: no bad shard passed verify --full, every finished cache equals an uninterrupted one "
        "byte for byte"
    )


def all_alive(workers: list[ForkServerProcess]) -> bool:
    return all(worker.is_alive() for worker in workers)


def without_debris(path: Path) -> dict[str, bytes]:
    """What the sidecars name, the sidecars and the manifests."""
    exp = load_experiment(path)
    kept = set()
    for item in items_of(exp):
        kept.add("manifest.json")
        for name in item.artifact.committed():
            sidecar = item.artifact.sidecar(name)
            assert sidecar
            kept |= {f"{name}.json", *(described["file"] for described in sidecar["files"].values())}
    return {name: data for name, data in contents(exp.cache.dir).items() if Path(name).name in kept}


# -- damaged files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Tokens, neighbours and states of corpus and task, in several shards where there can be several."""
    exp = tiny_experiment(tmp_path_factory.mktemp("faults"), "cache.shard_tokens=400", "launch.threads=1")
    pipeline.run(exp, ["retrieve", "cache-general", "cache-task"])
    return exp


def flip(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"bit flipped in byte {place}"


def truncate(path: Path, rng: random.Random) -> str:
    length = rng.choice([0, path.stat().st_size - 1, rng.randrange(path.stat().st_size)])
    os.truncate(path, length)
    return f"cut to {length} bytes"


def delete(path: Path, _rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def repair_by_command(exp: Experiment) -> None:
    """As a person does."""
    arguments = [str(exp.run.dir / "experiment.yaml")]
    damaged = subprocess.run([*REFBERT, "cache", "verify", *arguments, "--full"], capture_output=True, text=True)
    assert damaged.returncode == 1 and "1 damaged shard" in damaged.stderr, damaged
    repaired = subprocess.run([*REFBERT, "cache", "repair", *arguments], capture_output=True, text=True)
    assert repaired.returncode == 0 and "written again" in repaired.stdout, repaired
    assert subprocess.run([*REFBERT, "cache", "verify", *arguments, "--full"]).returncode == 0


@pytest.mark.faults
@pytest.mark.timeout(0 if SOAK else 600)
def test_every_damage_is_found_and_repaired(finished: Experiment, say: Say) -> None:
    rng = random.Random(1)
    whole = contents(finished.cache.dir)
    items = {item.artifact.path: item for item in items_of(finished)}
    counts = {flip: 0, truncate: 0, delete: 0}
    for number in range(DAMAGES):
        path = rng.choice(sorted(path for item in items for path in item.iterdir() if path.is_file()))
        damage = rng.choice(list(counts))
        what = f"{path}: {damage(path, rng)}"
        counts[damage] += 1
        expected = {items[path.parent].label: {path.name.partition(".")[0]}}
        for full in (True, False) if damage is not flip else (True,):
            found = find_damage(finished, full)
            named = {label: {one.shard for one in damages} for label, damages in found.items() if damages}
            assert named == expected, what
        if number == 7:
            repair_by_command(finished)
        else:
            mend(finished, find_damage(finished, full=True))
        assert contents(finished.cache.dir) == whole, what
        assert not any(find_damage(finished, full=True).values()), what
    say(
        f"{DAMAGES} damaged files ({counts[flip]} flipped bits, {counts[truncate]} truncations, {counts[delete]} "
        f"deletions) in a cache of {len(whole)} files: each found, only its shard named, repaired byte for byte"
    )
