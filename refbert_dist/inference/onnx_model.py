"""The model as an ONNX graph, reference branch included, and how onnxruntime runs it.

Batch, length, number of references and their length are free. The reference inputs are projected keys and values; where
none are to be read, one masked place stands for them, which changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import AutoModelForSequenceClassification

from refbert_dist.errors import UserError
from refbert_dist.inference.networks import Gathered, Tokens
from refbert_dist.onnx_library import EXPORT_ASKS, require_onnx

Runtime = Literal["torch", "onnx", "onnx-int8"]

FILES: dict[Runtime, str] = {"onnx": "model.onnx", "onnx-int8": "model.int8.onnx"}
OPSET = 18
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
REFERENCES = ("reference_keys", "reference_values", "reference_mask")


class _Graph(nn.Module):
    """The forward pass with positional inputs and one output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip((*TOKENS, *REFERENCES), inputs, strict=False))
        if len(inputs) > len(TOKENS):
            named["references_projected"] = True
        logits: Tensor = self.model(**named).logits
        return logits


def exported_program(folder: Path) -> torch.export.ExportedProgram:
    """A saved model as torch's own graph: takes :data:`TOKENS` and, if it reads any, :data:`REFERENCES`."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="sdpa", trust_remote_code=False
    )
    # With gradients, attention whose mask is learned (a gate) would be laid out otherwise than when it was traced.
    model.eval().requires_grad_(False)
    # Sizes of one would be taken for constants.
    batch, length, count, tokens = 2, 6, 2, 4
    inputs: tuple[Tensor, ...] = tuple(torch.ones(batch, length, dtype=torch.int64) for _ in TOKENS)
    most = {"length": model.config.max_position_embeddings}
    names = {name: Dim(name, max=most.get(name)) for name in ("batch", "length", "references", "reference_length")}
    shapes = [{0: names["batch"], 1: names["length"]} for _ in TOKENS]
    if getattr(model.config, "reference_count", 0):
        states = torch.zeros(batch, count, tokens, model.config.hidden_size)
        inputs += (states, states.clone(), torch.ones(batch, count, tokens, dtype=torch.bool))
        shapes += [{0: names["batch"], 1: names["references"], 2: names["reference_length"]} for _ in REFERENCES]
    with torch.inference_mode():
        return torch.export.export(_Graph(model), inputs, dynamic_shapes=[tuple(shapes)])


def export_onnx(folder: Path) -> None:
    """Write ``model.onnx`` and ``model.int8.onnx`` (dynamic quantisation) beside a saved model.

    Raises :class:`UserError` when one of the libraries is not installed.
    """
    require_onnx(*EXPORT_ASKS)
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / FILES["onnx"]
    with _silent():
        program = exported_program(folder)
        names = (*TOKENS, *REFERENCES)[: len(program.graph_signature.user_inputs)]
        torch.onnx.export(
            program,
            f=path,
            input_names=names,
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        with tempfile.TemporaryDirectory() as temporary:
            prepared = Path(temporary) / "prepared.onnx"
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            quantize_dynamic(prepared, folder / FILES["onnx-int8"], weight_type=QuantType.QInt8, per_channel=True)


class OnnxNetwork:
    """An exported model in onnxruntime, with as many threads as torch has."""

    def __init__(self, folder: Path, runtime: Runtime, device: str | None) -> None:
        """``device``: ``cpu``, or ``cuda`` with the GPU build of onnxruntime."""
        require_onnx(f"runtime is '{runtime}'", "runtime=torch")
        import onnxruntime

        path = folder / FILES[runtime]
        if not path.is_file():
            raise UserError(
                f"runtime is '{runtime}', but {folder} has no {path.name}; export it with --onnx, or use runtime=torch"
            )
        provider = "CUDAExecutionProvider" if (device or "").startswith("cuda") else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UserError(
                f"device is '{device}', but this onnxruntime knows no GPU; use cpu, or install its GPU build"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(path, options, providers=[provider])
        found = {given.name: given.shape for given in self._session.get_inputs()}
        self._width = found[REFERENCES[0]][-1] if REFERENCES[0] in found else 0

    def __call__(self, tokens: Tokens, references: Gathered | None) -> np.ndarray:
        """See :class:`refbert_dist.inference.networks.Network`."""
        inputs: dict[str, np.ndarray] = {name: tokens[name] for name in TOKENS}
        if self._width:
            if references is None:
                states = np.zeros((len(tokens[TOKENS[0]]), 1, 1, self._width), np.float32)
                references = states, states, np.zeros(states.shape[:3], bool)
            inputs |= zip(REFERENCES, references, strict=True)
        logits: np.ndarray = self._session.run(None, inputs)[0]
        return logits


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Both exporters report their progress and doubts on stdout and in warnings; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
