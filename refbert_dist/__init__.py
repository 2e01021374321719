"""RefBERT, distributed: compress a BERT-style teacher into a small student that keeps reading the teacher's states.

The same stages that the ``refbert`` command runs, from Python::

    import refbert_dist
    experiment = refbert_dist.load_experiment("configs/demo.yaml", ["student.layers=3"])
    refbert_dist.run(experiment)                     # all stages, in this process
    refbert_dist.run(experiment, ["cache-general"])  # one stage, and what it needs
    pipeline = refbert_dist.RefBertPipeline("runs/demo/export")
    pipeline([("a first passage", "a second passage")])

Importing this package is cheap; torch and transformers are imported by what needs them. transformers' auto classes know
``RefBertModel`` and ``RefBertForSequenceClassification`` from then on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from refbert_dist._auto import register_when_imported

if TYPE_CHECKING:
    from refbert_dist.bank.reader import ReferenceBank
    from refbert_dist.config import Experiment, load_experiment
    from refbert_dist.inference.pipeline import RefBertPipeline
    from refbert_dist.models.configuration_refbert import RefBertConfig
    from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification, RefBertModel
    from refbert_dist.pipeline import STAGES, run

register_when_imported()

_PLACES = {
    "Experiment": "refbert_dist.config",
    "load_experiment": "refbert_dist.config",
    "STAGES": "refbert_dist.pipeline",
    "run": "refbert_dist.pipeline",
    "RefBertPipeline": "refbert_dist.inference.pipeline",
    "ReferenceBank": "refbert_dist.bank.reader",
    "RefBertConfig": "refbert_dist.models.configuration_refbert",
    "RefBertForSequenceClassification": "refbert_dist.models.modeling_refbert",
    "RefBertModel": "refbert_dist.models.modeling_refbert",
}

__all__ = [
    "STAGES",
    "Experiment",
    "RefBertConfig",
    "RefBertForSequenceClassification",
    "RefBertModel",
    "RefBertPipeline",
    "ReferenceBank",
    "load_experiment",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'refbert_dist' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)
