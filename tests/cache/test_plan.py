from itertools import pairwise

import numpy as np
import pytest

from refbert_dist.cache.plan import ShardPlan, plan_batches, plan_shards

RNG = np.random.default_rng(0)
CASES = [
    RNG.integers(3, 129, size=500),
    np.full(64, 128),
    np.array([500, 3, 3, 500, 3]),  # longer than a shard and than a batch
    np.array([7]),
]


@pytest.mark.parametrize("lengths", CASES, ids=["mixed", "equal", "oversized", "single"])
def test_every_sample_is_in_one_shard_and_one_batch(lengths: np.ndarray) -> None:
    plans = plan_shards(lengths, 400)
    assert [plan.shard for plan in plans] == list(range(len(plans)))
    covered = [index for plan in plans for index in range(plan.start, plan.stop)]
    assert covered == list(range(len(lengths)))
    for plan in plans:
        batches = list(plan_batches(lengths, plan, 300))
        assert sorted(np.concatenate(batches).tolist()) == list(range(plan.start, plan.stop))


@pytest.mark.parametrize("lengths", CASES, ids=["mixed", "equal", "oversized", "single"])
def test_budgets_are_kept_and_used(lengths: np.ndarray) -> None:
    plans = plan_shards(lengths, 400)
    for plan in plans:
        assert lengths[plan.start : plan.stop].sum() <= 400 or plan.stop - plan.start == 1
        for batch in plan_batches(lengths, plan, 300):
            assert len(batch) * lengths[batch].max() <= 300 or len(batch) == 1
    for before, after in pairwise(plans):
        # A shard ends only where the next sample would not fit.
        assert lengths[before.start : before.stop].sum() + lengths[after.start] > 400


def test_samples_of_like_length_go_together() -> None:
    lengths = np.array([9, 2, 9, 2, 9, 2])
    batches = [batch.tolist() for batch in plan_batches(lengths, ShardPlan(0, 0, 6), 27)]
    assert batches == [[1, 3, 5], [0, 2, 4]]


def test_a_shard_plans_its_batches_from_its_own_lengths_alone() -> None:
    lengths = RNG.integers(3, 129, size=60)
    plan = ShardPlan(1, 20, 40)
    other = lengths.copy()
    other[:20], other[40:] = 128, 3
    for one, two in zip(plan_batches(lengths, plan, 300), plan_batches(other, plan, 300), strict=True):
        np.testing.assert_array_equal(one, two)
