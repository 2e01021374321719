"""Whether ONNX's libraries are there, which are optional: ``pip install 'refbert-dist[onnx]'``."""

from __future__ import annotations

import importlib.util

from refbert_dist.errors import UserError

EXPORT_ASKS = ("export.onnx is true", "export.onnx=false")
"""What asks for them in an experiment, and the setting that does without."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx(setting: str, instead: str) -> None:
    """Raise UserError when one of them is not installed; loads none.

    Args:
        setting: what asks for them, such as ``export.onnx is true``.
        instead: the setting that does without.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"{setting}, which needs {name}, and it is not installed; run pip install 'refbert-dist[onnx]', or set "
                f"{instead}"
            )
