import numpy as np
import pytest

from refbert_dist.data.pool import RUN_SAMPLES, pool_rows


@pytest.mark.parametrize("samples", [1, 15, 100, 1023, 1024, 1025, 5000, 99_999, 1_000_003])
@pytest.mark.parametrize("cap", [1, 7, 16, 100, 1024, 5000, 100_000])
def test_a_pool_is_ascending_within_the_samples_and_nearly_as_large_as_allowed(samples: int, cap: int) -> None:
    rows = pool_rows(samples, cap)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert rows[0] == 0
    assert rows[-1] < samples
    assert len(rows) == samples if samples <= cap else cap * 15 / 16 < len(rows) <= cap


def test_whole_runs_are_spread_evenly() -> None:
    rows = pool_rows(1_000_000, 100_000)
    runs = rows.reshape(-1, RUN_SAMPLES)
    assert (np.diff(runs, axis=1) == 1).all()
    gaps = np.diff(runs[:, 0])
    assert gaps.max() - gaps.min() <= 1
    assert 1_000_000 - runs[-1, 0] >= gaps.min()


def test_a_small_pool_is_spread_too() -> None:
    rows = pool_rows(1000, 64)
    assert len(rows) == 64
    assert np.diff(rows).max() > 50
    assert rows[-1] > 900
