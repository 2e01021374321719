from itertools import pairwise

import numpy as np
import pytest

from refbert_dist.cache.codec import SAMPLE_TOKENS
from refbert_dist.cache.plan import CachePlan, batches_by_length
from refbert_dist.errors import UserError

RNG = np.random.default_rng(0)
CASES = [
    RNG.integers(3, 129, size=500),
    np.full(64, 128),
    np.array([500, 3, 3, 500, 3]),  # longer than a shard and than a batch
    np.array([7]),
]


def plan_of(lengths: np.ndarray, cut: int | None = None) -> CachePlan:
    return CachePlan(np.arange(len(lengths)), lengths, cut, 400)


@pytest.mark.parametrize("lengths", CASES, ids=["mixed", "equal", "oversized", "single"])
def test_every_row_is_in_one_shard_and_one_batch(lengths: np.ndarray) -> None:
    plan = plan_of(lengths)
    assert [shard.number for shard in plan.shards] == list(range(len(plan.shards)))
    covered = [index for shard in plan.shards for index in range(shard.start, shard.stop)]
    assert covered == list(range(len(lengths)))
    for shard in plan.shards:
        batches = list(plan.batches(shard, 300))
        assert sorted(np.concatenate(batches).tolist()) == list(range(shard.start, shard.stop))


@pytest.mark.parametrize("lengths", CASES, ids=["mixed", "equal", "oversized", "single"])
def test_budgets_are_kept_and_used(lengths: np.ndarray) -> None:
    plan = plan_of(lengths)
    for shard in plan.shards:
        assert lengths[shard.start : shard.stop].sum() <= 400 or shard.stop - shard.start == 1
        for batch in plan.batches(shard, 300):
            assert len(batch) * lengths[batch].max() <= 300 or len(batch) == 1
    for before, after in pairwise(plan.shards):
        # A shard ends only where the next row would not fit.
        assert lengths[before.start : before.stop].sum() + lengths[after.start] > 400


def test_rows_of_like_length_go_together() -> None:
    lengths = np.array([9, 2, 9, 2, 9, 2])
    batches = [batch.tolist() for batch in batches_by_length(lengths, np.arange(6), 27)]
    assert batches == [[1, 3, 5], [0, 2, 4]]


def test_a_shard_plans_its_batches_from_its_own_lengths_alone() -> None:
    lengths = RNG.integers(3, 129, size=60)
    other = lengths.copy()
    other[:20], other[40:] = 128, 3
    rows = np.arange(20, 40)
    for one, two in zip(batches_by_length(lengths, rows, 300), batches_by_length(other, rows, 300), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_sample_is_found_by_its_id_where_only_some_are_stored() -> None:
    rows = np.array([3, 4, 5, 20, 21, 90])
    plan = CachePlan(rows, np.array([200, 150, 60, 390, 9, 400]), None, 400)
    assert [(shard.start, shard.stop) for shard in plan.shards] == [(0, 2), (2, 3), (3, 5), (5, 6)]
    shards, places = plan.find(np.array([90, 3, 21, 5, 4]))
    assert shards.tolist() == [3, 0, 2, 1, 0]
    assert places.tolist() == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("absent", [0, 6, 89, 91])
def test_a_sample_that_is_not_stored_is_named(absent: int) -> None:
    plan = CachePlan(np.array([3, 4, 5, 20, 21, 90]), np.full(6, 10), None, 400)
    with pytest.raises(UserError, match=rf"sample {absent} is not in the teacher cache, which holds 6 samples"):
        plan.find(np.array([4, absent]))


def test_references_are_cut_to_what_is_read_but_the_teacher_sees_them_whole() -> None:
    lengths = np.array([100, 30, 64, 128])
    plan = plan_of(lengths, cut=64)
    assert plan.stored.tolist() == [64, 30, 64, 64]
    assert plan.lengths.tolist() == lengths.tolist()


def test_a_sample_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"sample 12 has no tokens.*corpus\.min_length"):
        CachePlan(np.array([11, 12]), np.array([5, 0]), None, 400)


def test_a_codec_learns_from_rows_that_are_spread_over_all() -> None:
    plan = plan_of(np.full(5000, 100))
    rows = plan.training_rows()
    assert abs(len(rows) * 100 - SAMPLE_TOKENS) < 100
    assert (rows[0], rows[-1]) == (0, 4999) and np.diff(rows).max() - np.diff(rows).min() <= 1
    assert plan_of(np.full(7, 9)).training_rows().tolist() == list(range(7))
