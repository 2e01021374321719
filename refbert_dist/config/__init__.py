"""The ground floor: what an experiment is, and how it is read."""

from refbert_dist.config.benchmark import BenchmarkConfig, Way
from refbert_dist.config.load import (
    first_difference,
    load_experiment,
    parse_experiment,
    parse_model,
    read_yaml,
    to_yaml,
)
from refbert_dist.config.schema import (
    SYSTEM_LABELS,
    CorpusConfig,
    DistillConfig,
    EngineConfig,
    Experiment,
    OptimConfig,
    ReferencesConfig,
    StudentConfig,
    SystemName,
    TaskConfig,
)
from refbert_dist.config.weights import LossWeights

__all__ = [
    "SYSTEM_LABELS",
    "BenchmarkConfig",
    "CorpusConfig",
    "DistillConfig",
    "EngineConfig",
    "Experiment",
    "LossWeights",
    "OptimConfig",
    "ReferencesConfig",
    "StudentConfig",
    "SystemName",
    "TaskConfig",
    "Way",
    "first_difference",
    "load_experiment",
    "parse_experiment",
    "parse_model",
    "read_yaml",
    "to_yaml",
]
