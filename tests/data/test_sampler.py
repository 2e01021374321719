from itertools import pairwise

import numpy as np
import pytest

from refbert_dist.data.sampler import Sampler, shuffled

LENGTHS = np.random.default_rng(0).integers(3, 50, size=53)


def sampler(**changes: int) -> Sampler:
    return Sampler(LENGTHS, **{"batch_size": 12, "micro_batch_size": 5, "seed": 3, **changes})


def test_every_epoch_sees_every_sample_once_and_in_another_order() -> None:
    order = sampler()
    epochs = [
        np.concatenate(
            [order.batch(epoch * order.steps_per_epoch + step).samples for step in range(order.steps_per_epoch)]
        )
        for epoch in range(2)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(53))
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    asked_in_order = [sampler().batch(step).samples for step in range(8)]
    jumped = sampler()
    for step in (7, 2, 5, 0):
        assert np.array_equal(jumped.batch(step).samples, asked_in_order[step])
    assert not np.array_equal(sampler(seed=4).batch(0).samples, asked_in_order[0])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_processes_share_a_batch_without_gap_or_overlap(world_size: int) -> None:
    order = sampler()
    passes = order.passes(world_size)
    for step in (0, order.steps_per_epoch - 1):  # the last batch is smaller
        batch = order.batch(step)
        shares = [batch.share(rank, world_size, passes) for rank in range(world_size)]
        assert {len(share) for share in shares} == {passes}
        real = [micro for share in shares for micro in share if not micro.filler]
        assert sorted(np.concatenate([micro.samples for micro in real])) == sorted(batch.samples)
        assert sorted(micro.index for micro in real) == list(range(len(batch.micro_batches)))


def test_micro_batches_hold_samples_of_like_length() -> None:
    batch = sampler().batch(0)
    lengths = [LENGTHS[micro.samples] for micro in batch.micro_batches]
    assert all(one.max() <= other.min() for one, other in pairwise(lengths))


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    order = sampler(batch_size=1000)
    assert order.steps_per_epoch == 1
    assert len(order.batch(0).samples) == 53


@pytest.mark.parametrize(("samples", "window"), [(1000, 80), (1003, 80), (50, 7), (5, 1), (64, 64)])
def test_a_windowed_shuffle_still_has_every_sample_once(samples: int, window: int) -> None:
    order = shuffled(samples, window, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(samples))
    assert order.tolist() != list(range(samples))


def test_a_windowed_shuffle_reads_from_few_places_at_a_time() -> None:
    order = shuffled(8000, 800, np.random.default_rng(0))
    whole = shuffled(8000, None, np.random.default_rng(0))

    def places(found: np.ndarray) -> list[int]:
        return [len(set((found[start : start + 800] // 100).tolist())) for start in range(0, 8000, 800)]

    assert places(order) == [8] * 10
    assert min(places(whole)) > 70
    first = order[:800]
    assert (np.diff(first) == 1).mean() < 0.05, "within the window the runs are mixed"


def test_windowed_orders_differ_between_epochs_and_repeat_with_the_seed() -> None:
    lengths = np.full(500, 9)
    orders = [
        np.concatenate([Sampler(lengths, 50, 8, seed, window=40).batch(step).samples for step in steps]).tolist()
        for seed, steps in ((1, range(10)), (1, range(10)), (1, range(10, 20)), (2, range(10)))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]
