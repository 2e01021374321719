"""The ground floor: what an experiment is, and how it is read."""

from refbert_dist.config.augment import AugmentConfig
from refbert_dist.config.benchmark import BenchmarkConfig, Way
from refbert_dist.config.distill import DistillConfig, OptimConfig, Stage
from refbert_dist.config.load import (
    first_difference,
    load_experiment,
    parse_experiment,
    parse_model,
    read_yaml,
    to_yaml,
)
from refbert_dist.config.references import ReferencesConfig
from refbert_dist.config.schema import (
    CorpusConfig,
    EngineConfig,
    Experiment,
    StudentConfig,
)
from refbert_dist.config.systems import (
    EXPORTED,
    FOLDS,
    LABEL_WIDTH,
    SYSTEM_LABELS,
    SYSTEMS,
    SystemName,
    system_label,
)
from refbert_dist.config.task import Split, TaskConfig
from refbert_dist.config.weights import LossWeights

__all__ = [
    "EXPORTED",
    "FOLDS",
    "LABEL_WIDTH",
    "SYSTEMS",
    "SYSTEM_LABELS",
    "AugmentConfig",
    "BenchmarkConfig",
    "CorpusConfig",
    "DistillConfig",
    "EngineConfig",
    "Experiment",
    "LossWeights",
    "OptimConfig",
    "ReferencesConfig",
    "Split",
    "Stage",
    "StudentConfig",
    "SystemName",
    "TaskConfig",
    "Way",
    "first_difference",
    "load_experiment",
    "parse_experiment",
    "parse_model",
    "read_yaml",
    "system_label",
    "to_yaml",
]
