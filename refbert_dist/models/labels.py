"""What a model answers, as its ``config.json`` tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_LABELS = 2
"""Of a classifier whose configuration does not list them."""


def label_count(config: Mapping[str, Any]) -> int:
    """Classes of a model by its ``config.json``; 1 of a regressor."""
    return len(config.get("id2label", range(DEFAULT_LABELS)))


def class_names(config: Mapping[str, Any]) -> list[str]:
    """What a model's ``config.json`` calls its classes; empty where it has no names for them."""
    named = config.get("id2label", {})
    names = [named[str(label)] for label in range(len(named))]
    return [] if any(name.startswith("LABEL_") for name in names) else names


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a model has a head, by its ``config.json``."""
    return any("SequenceClassification" in name for name in config["architectures"])
