"""An exported model as MLflow's registry serves it."""

from __future__ import annotations

from typing import Any

from refbert_dist.inference.pipeline import RefBertPipeline


class _ServedModel:
    """A pipeline as MLflow wants it."""

    def __init__(self, folder: str) -> None:
        self._pipeline = RefBertPipeline(folder)

    def predict(self, frame: Any) -> list[dict[str, Any]]:
        """Answers to the rows of a data frame with the columns ``text`` and, for pairs, ``text_b``."""
        firsts = frame["text"]
        seconds = frame["text_b"] if "text_b" in frame else [None] * len(frame)
        # A frame says nan, or something of its own, where there is no text.
        texts = [
            (str(first), second if isinstance(second, str) else None)
            for first, second in zip(firsts, seconds, strict=True)
        ]
        return self._pipeline(texts)


def _load_pyfunc(folder: str) -> _ServedModel:
    """Called by MLflow for a registered model; see :mod:`refbert_dist.tracking.mlflow_model`."""
    return _ServedModel(folder)
