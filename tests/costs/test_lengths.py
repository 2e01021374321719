import numpy as np
import pytest

from refbert_dist.costs.lengths import Lengths


def test_counts_and_lists_of_lengths_say_the_same() -> None:
    lengths = Lengths.of([3, 5, 5, 8])
    assert lengths.samples == 4
    assert lengths.tokens == 21
    assert lengths.mean == 5.25
    assert lengths.seen == pytest.approx((9 + 25 + 25 + 64) / 21)
    counted = Lengths.counted([0, 0, 0, 1, 0, 2, 0, 0, 1])
    assert (counted.samples, counted.shares.tolist()) == (4, lengths.shares.tolist())


def test_cut_and_scaled_keep_the_rest() -> None:
    lengths = Lengths.of([3, 5, 5, 8])
    assert lengths.cut(5).tokens == 18
    assert lengths.cut(9).tokens == 21
    assert lengths.scaled(400).tokens == 2100


def test_padding_is_that_of_sorted_micro_batches() -> None:
    random = np.random.default_rng(0)
    population = np.minimum(128, random.geometric(1 / 40, 20_000) + 2)
    lengths = Lengths.of(population)
    drawn = np.sort(random.choice(population, (400, 32)), axis=1)
    # The longest of all is the hardest to foretell from a quantile.
    for expected, found in zip(drawn[:, 7::8].mean(axis=0), lengths.padded(32, 8), strict=True):
        assert found == pytest.approx(expected, rel=0.15)
    assert len(lengths.padded(30, 8)) == 4
    assert Lengths.of([7] * 9).padded(4, 4) == [7]
