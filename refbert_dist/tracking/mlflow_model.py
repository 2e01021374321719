"""What an exported model is to MLflow: a folder, the module that loads it, and the columns that go in and come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refbert_dist.models.labels import class_names, is_classifier, label_count
from refbert_dist.tracking.mlflow_store import ModelFolder
from refbert_dist.tracking.provenance import installed_version

LOADER = "refbert_dist.inference.pyfunc"
REQUIREMENTS = ("refbert-dist", "torch", "transformers")


def exported_model(folder: Path) -> ModelFolder | None:
    """The model in an export folder; None when that holds an encoder without a head, which predicts nothing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not is_classifier(config):
        return None
    if label_count(config) == 1:
        answers = [_column("score", "double")]
    else:
        name = [_column("name", "string")] if class_names(config) else []
        answers = [_column("label", "long"), *name, _list("probabilities", "double")]
    if config["reference_count"]:
        answers.append(_list("references", "long"))
    versions = {name: version for name in REQUIREMENTS if (version := installed_version(name))}
    return ModelFolder(
        folder,
        LOADER,
        inputs=[_column("text", "string"), _column("text_b", "string", required=False)],
        outputs=answers,
        # What follows a plus names a build (+cpu), which no package index has.
        requirements=[f"{name}=={version.split('+')[0]}" for name, version in versions.items()],
    )


def _column(name: str, kind: str, required: bool = True) -> dict[str, Any]:
    return {"name": name, "type": kind, "required": required}


def _list(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "type": "array", "items": {"type": kind}, "required": True}
