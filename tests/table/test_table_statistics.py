"""Resampled scores against the same metrics on rows that are really repeated, and intervals against what is known."""

import numpy as np
import pytest

from refbert_dist.stages.scores import METRICS
from refbert_dist.table.statistics import RESAMPLED, interval, resampled_scores, row_counts, seed_shares

ROWS = 120


def answers(metric: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Predictions ``[3, N]`` and gold ``[N]``; scores have ties, as STS-B's do."""
    if metric in ("pearson", "spearman"):
        gold = np.round(5 * rng.random(ROWS), 1).astype(np.float32)
        return np.stack([gold + rng.normal(0, 1, ROWS), np.round(rng.random(ROWS), 1), np.ones(ROWS)]), gold
    gold = (rng.random(ROWS) < 0.6).astype(np.float32)
    return np.stack([np.where(rng.random(ROWS) < 0.7, gold, 1 - gold), rng.integers(0, 2, ROWS), np.zeros(ROWS)]), gold


@pytest.mark.parametrize("metric", RESAMPLED)
def test_a_metric_on_drawn_rows_is_that_of_the_repeated_rows(metric: str) -> None:
    rng = np.random.default_rng(0)
    predictions, gold = answers(metric, rng)
    counts = row_counts(ROWS, 25, rng)
    assert (counts.sum(axis=1) == ROWS).all()
    found = RESAMPLED[metric](predictions, gold, counts)
    for resample, times in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(ROWS), times)
        for place, given in enumerate(predictions):
            assert found[resample, place] == pytest.approx(METRICS[metric](gold[rows], given[rows]), abs=1e-9)


def test_every_metric_of_a_task_can_be_drawn_anew() -> None:
    assert RESAMPLED.keys() == METRICS.keys()


def test_draws_depend_on_seed_and_rows_alone() -> None:
    predictions, gold = answers("accuracy", np.random.default_rng(1))
    both = resampled_scores(["accuracy", "f1"], predictions, gold, 50, [7])
    assert both.shape == (50, 3)
    assert np.array_equal(resampled_scores(["accuracy", "f1"], predictions[1:], gold, 50, [7]), both[:, 1:])
    assert not np.array_equal(resampled_scores(["accuracy", "f1"], predictions, gold, 50, [8]), both)


def test_pieces_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, gold = answers("spearman", np.random.default_rng(2))
    whole = resampled_scores(["spearman"], predictions, gold, 40, [3])
    monkeypatch.setattr("refbert_dist.table.statistics.CHUNK_VALUES", 7 * ROWS)
    assert np.allclose(resampled_scores(["spearman"], predictions, gold, 40, [3]), whole)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_mean_of_drawn_seeds_spreads_as_a_mean_of_so_many_does(seeds: int) -> None:
    shares = seed_shares(seeds, 200_000, [0])
    assert np.allclose(shares.sum(axis=1), 1)
    values = np.arange(seeds) ** 2.0
    assert (shares @ values).var() == pytest.approx(values.var(ddof=1) / seeds, rel=0.03)


def test_a_single_seed_is_not_drawn() -> None:
    assert (seed_shares(1, 10, [0]) == 1).all()


def runs(rng: np.random.Generator, skills: tuple[float, float], rows: int, seeds: int) -> tuple[np.ndarray, ...]:
    """Which rows each system has right, ``[seeds, rows]``: some rows are hard for both, some seeds bad for one."""
    hard = rng.normal(0, 1, rows)
    return tuple(
        hard + rng.normal(0, 0.6, (seeds, rows)) + rng.normal(0, 0.1, (seeds, 1)) < np.sqrt(2) * skill
        for skill in skills
    )


def difference(first: np.ndarray, second: np.ndarray, resamples: int, paired: bool = True) -> np.ndarray:
    """The difference of two systems' accuracies, rows and seeds drawn anew."""
    gold, drawn = np.ones(first.shape[1]), []
    for number, right in enumerate((first, second)):
        seed = [0 if paired else number]
        values = resampled_scores(["accuracy"], right.astype(float), gold, resamples, seed)
        drawn.append((values * seed_shares(len(right), resamples, seed)).sum(axis=1))
    return drawn[0] - drawn[1]


def test_a_difference_that_is_there_is_found() -> None:
    first, second = runs(np.random.default_rng(3), (0.9, 0.3), rows=400, seeds=5)
    low, high = interval(difference(first, second, 2000))
    true = np.subtract(*(right.mean() for right in runs(np.random.default_rng(4), (0.9, 0.3), rows=40_000, seeds=50)))
    assert 0 < low < true < high


def test_a_system_is_no_better_than_itself() -> None:
    (right,) = runs(np.random.default_rng(5), (0.5,), rows=300, seeds=4)  # type: ignore[arg-type]
    assert interval(difference(right, right, 500)) == (0, 0)


def test_where_there_is_no_difference_few_intervals_leave_out_zero() -> None:
    rng, missed = np.random.default_rng(6), 0
    for _ in range(200):
        low, high = interval(difference(*runs(rng, (0.5, 0.5), rows=150, seeds=4), 300))
        missed += not low <= 0 <= high
    assert missed <= 20  # one in twenty is meant; with 200 trials 20 lie three standard deviations above


def test_the_same_rows_for_both_give_a_narrower_interval_than_rows_of_their_own() -> None:
    first, second = runs(np.random.default_rng(7), (0.6, 0.5), rows=400, seeds=5)
    widths = [np.subtract(*interval(difference(first, second, 2000, paired))) for paired in (True, False)]
    assert abs(widths[0]) < 0.85 * abs(widths[1])
