"""The official metric of each task, from scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from refbert_dist.data.tasks import Split

SUFFIXES: dict[Split, str] = {"dev": "", "dev-mismatched": "_mm"}
"""Of a metric's name, by the part that it is of."""
Metric = Callable[[np.ndarray, np.ndarray], float]

# Both libraries are imported by the first call: most processes that load this module never score anything.


def _classification(name: str) -> Metric:
    def score(labels: np.ndarray, predictions: np.ndarray) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(labels, predictions))

    return score


def _correlation(name: str) -> Metric:
    def score(labels: np.ndarray, predictions: np.ndarray) -> float:
        # A constant prediction has no correlation with anything; SciPy would answer NaN and warn.
        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        import scipy.stats

        return float(getattr(scipy.stats, name)(labels, predictions).statistic)

    return score


METRICS: dict[str, Metric] = {
    "accuracy": _classification("accuracy_score"),
    "f1": _classification("f1_score"),
    "mcc": _classification("matthews_corrcoef"),
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}


def predictions_of(logits: np.ndarray) -> np.ndarray:
    """Class numbers ``[N]`` of logits ``[N, C]``, or the scores themselves where C is 1."""
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(axis=1)


def answers_path(run_dir: Path, system: str, part: Split = "dev") -> Path:
    """Where a system's answers on the evaluated rows lie: ``logits`` float32 ``[N, C]``."""
    return run_dir / "answers" / ("" if part == "dev" else part) / f"{system}.safetensors"


def scores(metrics: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of a task for logits ``[N, C]`` and gold labels ``[N]``."""
    predictions = predictions_of(logits)
    gold = labels if logits.shape[1] == 1 else labels.astype(np.int64)
    return {name: METRICS[name](gold, predictions) for name in metrics}
