"""What is stored is what is needed, and it can be read while the rest is written, purged or staged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from teachers import lively_teacher
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.artifacts import Artifact, read_json, write_json
from refbert_dist.artifacts.seals import read_sealed, sealed
from refbert_dist.cache.contract import RECIPE, cache_plan, states_artifact
from refbert_dist.cache.forward import load_teacher
from refbert_dist.cache.plan import CODEBOOK
from refbert_dist.cache.states import CachedStates, OnlineStates, open_cache, open_states
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.errors import RefusedError, UserError

CPU = torch.device("cpu")
BASE = ("task=null", "corpus.max_documents=4", "cache.shard_tokens=400", "references.max_length=16")
REFERENCES_ONLY = ("distill.targets=online", "references.states=cache")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    lively_teacher(folder / "teacher", "bert")
    return folder


def build(root: Path, *overrides: str) -> tuple[Experiment, TokenSet]:
    exp = tiny_experiment(root, *BASE, *overrides)
    pipeline.run(exp, ["cache-general"])
    return exp, TokenSet.open(tokens_artifact(exp, "corpus"))


def read(exp: Experiment, tokens: TokenSet) -> CachedStates:
    return open_cache(exp, "general", tokens, width=32)


def online(exp: Experiment, tokens: TokenSet) -> OnlineStates:
    return OnlineStates(load_teacher(exp, "general"), tokens, CPU)


def test_references_alone_are_stored_of_the_pool_only_and_as_far_as_they_are_read(root: Path) -> None:
    exp, tokens = build(root, *REFERENCES_ONLY, "references.pool_samples=30", f"run.dir={root / 'only'}")
    cached = read(exp, tokens)
    plan = cache_plan(exp, "general", tokens.lengths)
    assert 0 < len(plan.rows) <= 30 < len(tokens)
    manifest = cached.artifact.manifest()
    assert manifest["samples"] == len(plan.rows)
    assert manifest["tokens"] == np.minimum(tokens.lengths[plan.rows], 16).sum()
    assert manifest["ingredients"]["layers"] == [4]
    found = cached.layers(plan.rows, (4,), 16)[4]
    expected = online(exp, tokens).layers(plan.rows, (4,), 16)[4]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2.0**-10, atol=1e-4)
    outside = int(np.setdiff1d(np.arange(len(tokens)), plan.rows)[0])
    with pytest.raises(UserError, match=rf"sample {outside} is not in the teacher cache"):
        cached.layers(np.array([plan.rows[0], outside]), (4,))


@pytest.mark.parametrize(
    ("overrides", "targets", "references"),
    [
        ((), CachedStates, CachedStates),
        (REFERENCES_ONLY, OnlineStates, CachedStates),
        (("references.states=online",), CachedStates, OnlineStates),
        (("distill.targets=online", "references.states=online"), OnlineStates, OnlineStates),
    ],
)
def test_targets_and_references_come_from_where_the_settings_say(
    root: Path, overrides: tuple[str, ...], targets: type, references: type
) -> None:
    exp, _ = build(root, *overrides, f"run.dir={root / targets.__name__ / references.__name__}")
    teacher = load_teacher(exp, "general")
    assert type(open_states(exp, "general", "targets", teacher, CPU)) is targets
    assert type(open_states(exp, "general", "references", teacher, CPU)) is references
    anything = targets is CachedStates or references is CachedStates
    assert ("cache-general" in {stage.name for stage in pipeline.STAGES if stage.wanted(exp)}) is anything


@pytest.mark.parametrize(("codec", "error"), [("fp16", 4e-4), ("int8", 1e-2), ("int4", 0.15), ("pq", 0.9)])
def test_every_codec_gives_back_what_it_promises(root: Path, codec: str, error: float) -> None:
    """Relative error of whole states: written, committed, mapped, decoded."""
    wide = root / "wide"
    if not (wide / "teacher").exists():
        lively_teacher(wide / "teacher", "bert", width=64)
    exp = tiny_experiment(wide, *BASE, f"cache.codec={codec}", f"run.dir={wide / codec}")
    pipeline.run(exp, ["cache-general"])
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    samples = np.random.default_rng(0).permutation(len(tokens))
    cached = open_cache(exp, "general", tokens, width=64).layers(samples, (2, 4))
    expected = online(exp, tokens).layers(samples, (2, 4))
    errors = []
    for layer in (2, 4):
        found, wanted = np.concatenate(cached[layer]), np.concatenate(expected[layer])
        assert found.dtype == np.float32 and found.shape == wanted.shape
        errors.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    assert error / 30 < max(errors) < error
    artifact = states_artifact(exp, "general")
    assert (CODEBOOK in artifact.names()) is (codec == "pq")
    assert artifact.manifest()["ingredients"]["codec"].startswith(f"{codec}/")


def test_finished_shards_are_read_while_others_are_written(root: Path) -> None:
    exp, tokens = build(root, f"run.dir={root / 'early'}", "cache.shard_tokens=401")
    artifact = states_artifact(exp, "general")
    plan = cache_plan(exp, "general", tokens.lengths)
    first, second = plan.shards[:2]
    expected = read(exp, tokens).layers(np.array([first.start]), (4,))[4][0]
    artifact.discard([second.name])
    unfinished = read(exp, tokens)
    np.testing.assert_array_equal(unfinished.layers(np.array([first.start]), (4,))[4][0], expected)
    with pytest.raises(RefusedError, match=rf"lacks {second.name}: it is not written yet.*refbert cache build"):
        unfinished.layers(np.array([second.start]), (4,))
    pipeline.run(exp, ["cache-general"])
    unfinished.layers(np.array([second.start]), (4,))


def test_a_purged_file_is_named_with_the_way_to_get_it_back(root: Path) -> None:
    exp, tokens = build(root, f"run.dir={root / 'purged'}", "cache.shard_tokens=402")
    artifact = states_artifact(exp, "general")
    path = artifact.file("shard-00001", "safetensors")
    path.unlink()
    start = cache_plan(exp, "general", tokens.lengths).shards[1].start
    with pytest.raises(RefusedError, match=rf"{path.name} is gone; run refbert cache repair"):
        read(exp, tokens).layers(np.array([start]), (4,))


def test_staged_shards_give_the_same_and_stay_within_their_room(root: Path, tmp_path: Path) -> None:
    exp, tokens = build(root, f"run.dir={root / 'staged'}")
    samples = np.random.default_rng(1).permutation(len(tokens))
    expected = read(exp, tokens).layers(samples, (4,))[4]
    largest = max(path.stat().st_size for path in states_artifact(exp, "general").files("safetensors"))
    room = 3 * largest
    staged, _ = build(
        root, f"run.dir={root / 'staged'}", f"cache.staging_dir={tmp_path}", f"cache.staging_gb={room / 1e9}"
    )
    found = read(staged, tokens).layers(samples, (4,))[4]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    copies = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert 0 < len(copies) < len(cache_plan(exp, "general", tokens.lengths).shards)
    assert sum(copies) <= room


def change(artifact: Artifact, ingredient: str) -> None:
    """As if the cache had been made from something else: in the manifest and in the note of what it is made from."""
    for name in ("manifest", RECIPE):
        path = artifact.path / f"{name}.json"
        content = read_sealed(path)
        content["ingredients"][ingredient] = "something else"
        write_json(path, sealed(content))


@pytest.mark.parametrize(
    "ingredient", ["teacher", "tokenizer", "data", "layers", "stored", "precision", "plan", "codec"]
)
def test_a_cache_of_another_ingredient_is_refused_and_left_alone(root: Path, ingredient: str) -> None:
    exp, tokens = build(root, f"run.dir={root / 'other'}", "cache.shard_tokens=403")
    artifact = states_artifact(exp, "general")
    kept = {path: path.read_bytes() for path in artifact.path.glob("*.json")}
    assert set(read_json(artifact.path / "manifest.json")["ingredients"]) >= {ingredient}
    change(artifact, ingredient)
    changed = {path: path.read_bytes() for path in artifact.path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=rf"made with another {ingredient} \(something else then"):
        read(exp, tokens)
    from refbert_dist.cache.writer import build_states
    from refbert_dist.engine.distributed import process_group

    with process_group(60) as world, pytest.raises(UserError, match=f"made with another {ingredient}"):
        build_states(exp, "general", world)
    assert {path: path.read_bytes() for path in artifact.path.iterdir() if path.is_file()} == changed
    for path, content in kept.items():
        path.write_bytes(content)
