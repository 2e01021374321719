"""GLUE's metrics, against values worked out by hand or published."""

import warnings

import numpy as np
import pytest

from refbert_dist.stages.scores import METRICS, predictions_of, scores


def logits_of(classes: list[int], count: int = 2) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[classes] * 3 - 1


def confusion(tp: int, fn: int, fp: int, tn: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels with these counts."""
    predicted = [1] * tp + [0] * fn + [1] * fp + [0] * tn
    gold = [1] * (tp + fn) + [0] * (fp + tn)
    return logits_of(predicted), np.array(gold, np.float32)


def test_classification_by_hand() -> None:
    found = scores(("accuracy", "f1", "mcc"), *confusion(tp=6, fn=2, fp=1, tn=3))
    assert found["accuracy"] == pytest.approx(9 / 12)
    assert found["f1"] == pytest.approx(2 * 6 / (2 * 6 + 2 + 1))
    # (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn))
    assert found["mcc"] == pytest.approx((6 * 3 - 1 * 2) / np.sqrt(7 * 8 * 4 * 5))


def test_scikit_learns_published_example_of_mcc() -> None:
    # y_true = [+1, +1, +1, -1], y_pred = [+1, -1, +1, +1] -> -0.33
    assert scores(("mcc",), *confusion(tp=2, fn=1, fp=1, tn=0))["mcc"] == pytest.approx(-1 / 3)


def test_f1_is_that_of_class_one() -> None:
    logits, gold = confusion(tp=1, fn=1, fp=0, tn=8)
    assert scores(("f1",), logits, gold)["f1"] == pytest.approx(2 / 3)
    assert scores(("f1",), -logits, 1 - gold)["f1"] == pytest.approx(16 / 17)


def test_correlations_by_hand() -> None:
    gold = np.array([1, 2, 3, 4, 5], np.float32)
    predicted = np.array([[1], [2], [3], [4], [100]], np.float32)
    found = scores(("pearson", "spearman"), predicted, gold)
    assert found["spearman"] == pytest.approx(1)
    centred = predicted[:, 0] - predicted.mean()
    assert found["pearson"] == pytest.approx((centred * (gold - 3)).sum() / np.sqrt((centred**2).sum() * 10), rel=1e-6)
    swapped = scores(("spearman",), predicted[[1, 0, 2, 3, 4]], gold)["spearman"]
    assert swapped == pytest.approx(1 - 6 * 2 / (5 * (25 - 1)))  # 1 - 6 sum d^2 / (n (n^2 - 1))


def test_scipys_published_example_of_spearman_with_ties() -> None:
    predicted, gold = np.array([[5.0], [6], [7], [8], [7]]), np.array([1.0, 2, 3, 4, 5])
    assert scores(("spearman",), predicted, gold)["spearman"] == pytest.approx(0.8207826816681233)


def ranks(values: np.ndarray) -> np.ndarray:
    """Mean place of each value among all, by counting."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def test_all_metrics_against_plain_numpy() -> None:
    rng = np.random.default_rng(0)
    logits, gold = rng.normal(size=(200, 2)), rng.integers(2, size=200).astype(np.float32)
    answer = (logits[:, 1] > logits[:, 0]).astype(np.float32)
    found = scores(("accuracy", "f1", "mcc"), logits, gold)
    assert found["accuracy"] == pytest.approx((answer == gold).mean())
    assert found["f1"] == pytest.approx(2 * (answer * gold).sum() / (answer.sum() + gold.sum()))
    assert found["mcc"] == pytest.approx(pearson(answer, gold))  # of two classes they are one
    values = rng.normal(size=(200, 1)).round(1)
    rated = (2.5 + values[:, 0] + rng.normal(size=200)).round().clip(0, 5).astype(np.float32)
    found = scores(("pearson", "spearman"), values, rated)
    assert found["pearson"] == pytest.approx(pearson(values[:, 0], rated))
    assert found["spearman"] == pytest.approx(pearson(ranks(values[:, 0]), ranks(rated)))


def test_three_classes_of_mnli() -> None:
    gold = np.array([0, 1, 2, 2, 1, 0], np.float32)
    assert scores(("accuracy",), logits_of([0, 1, 2, 0, 1, 2], 3), gold) == {"accuracy": pytest.approx(4 / 6)}


def test_anscombes_quartet() -> None:
    x = np.array([10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5], np.float32)
    y = np.array([8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68], np.float32)
    assert scores(("pearson",), x[:, None], y)["pearson"] == pytest.approx(0.816, abs=5e-4)


@pytest.mark.parametrize("constant", [0, 1])
def test_a_constant_class_has_no_correlation(constant: int) -> None:
    found = scores(("mcc",), logits_of([constant] * 4), np.array([0, 1, 1, 0], np.float32))
    assert found == {"mcc": 0.0}


def test_a_constant_score_has_no_correlation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        varied = np.arange(5, dtype=np.float32)
        constant = np.full(5, 2.5, np.float32)
        assert scores(("pearson", "spearman"), constant[:, None], varied) == {"pearson": 0.0, "spearman": 0.0}
        assert scores(("pearson", "spearman"), varied[:, None], constant) == {"pearson": 0.0, "spearman": 0.0}


def test_predictions_are_classes_or_scores() -> None:
    assert predictions_of(np.array([[0.1, 0.3, 0.2], [5, -1, 0]])).tolist() == [1, 0]
    assert predictions_of(np.array([[0.25], [-3]])).tolist() == [0.25, -3]


def test_every_metric_of_a_known_task_can_be_computed() -> None:
    from refbert_dist.data.tasks import TASKS

    assert {metric for spec in TASKS.values() for metric in spec.metrics} <= METRICS.keys()
