"""The exported and the compiled graphs answer as the model does, whatever the sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from finished import PAIRS, SINGLES, WIDTH, exported, seal

from refbert_dist.errors import UserError
from refbert_dist.inference.networks import TorchNetwork
from refbert_dist.inference.onnx_model import FILES, TOKENS, OnnxNetwork, export_onnx, exported_program
from refbert_dist.inference.pipeline import RefBertPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = exported(tmp_path_factory.mktemp("onnx"), SINGLES[:20])
    export_onnx(made)
    seal(made, 1)
    return made


def given(batch: int, length: int, count: int, tokens: int) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, length + 1, size=batch)
    inputs = {
        "input_ids": rng.integers(5, 1000, size=(batch, length)),
        "token_type_ids": rng.integers(0, 2, size=(batch, length)),
        "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int64),
    }
    keys, values = (rng.normal(size=(batch, count, tokens, WIDTH)).astype(np.float32) for _ in range(2))
    return inputs, (keys, values, rng.random((batch, count, tokens)) < 0.7)


SIZES = [(1, 1, 1, 1), (3, 17, 2, 9), (8, 40, 5, 1), (1, 64, 1, 30)]


@pytest.fixture(scope="module")
def program(folder: Path) -> torch.nn.Module:
    return exported_program(folder).module()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_size_gives_the_models_logits(
    folder: Path, program: torch.nn.Module, sizes: tuple[int, int, int, int]
) -> None:
    network, graph = TorchNetwork(folder, "cpu", "float32", False), OnnxNetwork(folder, "onnx", "cpu")
    tokens, references = given(*sizes)
    expected = network(tokens, references)  # type: ignore[arg-type]
    np.testing.assert_allclose(graph(tokens, references), expected, atol=1e-4)  # type: ignore[arg-type]
    ordered = [torch.from_numpy(array) for array in (*(tokens[name] for name in TOKENS), *references)]
    np.testing.assert_allclose(program(*ordered).detach(), expected, atol=1e-4)
    without = network(tokens, None)
    np.testing.assert_allclose(graph(tokens, None), without, atol=1e-4)
    if sizes[0] > 1:
        assert np.abs(expected - without).max() > 1e-2, "references must matter, or their branch was not compared"


def test_a_compiled_model_gives_the_same_logits(folder: Path) -> None:
    network, compiled = (TorchNetwork(folder, "cpu", "float32", is_compiled) for is_compiled in (False, True))
    # A size of one would be compiled anew, which takes long.
    for sizes in ((3, 17, 2, 9), (8, 40, 5, 2)):
        tokens, references = given(*sizes)
        expected = network(tokens, references)  # type: ignore[arg-type]
        np.testing.assert_allclose(compiled(tokens, references), expected, atol=1e-4)  # type: ignore[arg-type]


def test_the_pipeline_answers_by_every_runtime(folder: Path) -> None:
    expected = RefBertPipeline(folder, device="cpu")(SINGLES)
    for runtime, tolerance in (("onnx", 1e-4), ("onnx-int8", 0.1)):
        found = RefBertPipeline(folder, runtime=runtime)(SINGLES)  # type: ignore[arg-type]
        for one, two in zip(expected, found, strict=True):
            assert one["references"] == two["references"]
            assert one["probabilities"] == pytest.approx(two["probabilities"], abs=tolerance)
    assert (folder / FILES["onnx-int8"]).stat().st_size < 0.4 * (folder / FILES["onnx"]).stat().st_size


@pytest.mark.parametrize("memory", [0, 3])
def test_a_model_without_references(tmp_path: Path, memory: int) -> None:
    made = exported(tmp_path, PAIRS[:1], reference_count=0, reference_memory=memory)
    export_onnx(made)
    seal(made, 2)
    expected = RefBertPipeline(made, device="cpu")(PAIRS)
    for one, two in zip(expected, RefBertPipeline(made, runtime="onnx")(PAIRS), strict=True):
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-4)


def test_a_memory_beside_references(tmp_path: Path) -> None:
    made = exported(tmp_path, SINGLES[:20], reference_memory=3)
    export_onnx(made)
    network, graph = TorchNetwork(made, "cpu", "float32", False), OnnxNetwork(made, "onnx", "cpu")
    for sizes in SIZES[:2]:
        tokens, references = given(*sizes)
        for read in (references, None):
            np.testing.assert_allclose(graph(tokens, read), network(tokens, read), atol=1e-4)  # type: ignore[arg-type]


def test_what_is_missing_or_does_not_go_together_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runtime is 'onnx', but .* has no model\.onnx; export it with --onnx"):
        RefBertPipeline(exported(tmp_path, SINGLES[:20]), runtime="onnx")
    with pytest.raises(UserError, match="which has a number format of its own"):
        RefBertPipeline(folder, runtime="onnx", dtype="bfloat16")
    with pytest.raises(UserError, match="device is 'cuda', but this onnxruntime knows no GPU"):
        RefBertPipeline(folder, runtime="onnx", device="cuda")
