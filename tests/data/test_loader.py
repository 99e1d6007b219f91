"""Batches: one permutation for all ranks, sliced."""

import itertools
import math

import numpy as np
import pytest

from tlray.data.loader import epoch_batches, mix, permutation, steps_in_epoch
from tlray.training.world import World


def shares(batches, size):
    """rank -> the indices it takes."""
    return [np.concatenate([World(rank, size, None).mine(batch) for batch in batches]) for rank in range(size)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "batch", "world"), list(itertools.product([1, 2, 7, 64, 65, 97], [1, 8, 64], [1, 2, 3, 5])))
def test_the_ranks_shares_are_one_permutation(n, batch, world):
    batches = list(epoch_batches(n, batch, None, seed=3, epoch=2, world=world))
    taken = shares(batches, world)
    assert sorted(np.concatenate(taken)) == list(range(n))
    np.testing.assert_array_equal(np.concatenate(batches), permutation(n, 3, 2))
    assert all(max(counts) - min(counts) <= 1 for each in batches if (counts := [len(part) for part in np.array_split(each, world)]))


def test_the_permutation_is_that_of_seed_and_epoch_whatever_the_workers():
    orders = {
        (seed, epoch): tuple(np.concatenate(list(epoch_batches(50, 8, None, seed, epoch)))) for seed in (0, 1) for epoch in (1, 2, 11)
    }
    assert len(set(orders.values())) == 6
    for (seed, epoch), order in orders.items():
        assert tuple(np.concatenate(list(epoch_batches(50, 8, None, seed, epoch, world=4)))) == order


@pytest.mark.parametrize(("n", "batch", "steps"), [(10, 4, 3), (7, 3, 2), (5, 8, 3), (64, 16, 4), (9, 1, 5), (3, 10, 1)])
def test_steps_per_epoch_takes_every_image_once_before_any_twice_over_epochs(n, batch, steps):
    epochs = [list(epoch_batches(n, batch, steps, seed=0, epoch=epoch)) for epoch in range(1, 30)]
    assert all(len(each) == steps and all(len(part) == batch for part in each) for each in epochs)
    stream = np.concatenate([part for each in epochs for part in each])
    rounds = [stream[start : start + n] for start in range(0, len(stream), n)]
    assert all(sorted(each) == list(range(n)) for each in rounds[:-1])
    assert len(set(rounds[-1])) == len(rounds[-1])
    assert n < 4 or len({tuple(each) for each in rounds[:-1]}) > 1  # each its own permutation


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_last_batch_is_dropped_only_where_batch_norm_trains_and_a_rank_would_have_fewer_than_two(world):
    for rest in range(1, 8):
        n = 16 + rest
        plain, normed = (list(epoch_batches(n, 8, None, 0, 1, world, batch_norm)) for batch_norm in (False, True))
        assert [len(each) for each in plain] == [8, 8, rest]
        assert [len(each) for each in normed] == [8, 8] + [rest] * (rest >= 2 * world)


def test_the_only_batch_is_never_dropped():
    assert [len(each) for each in epoch_batches(5, 8, None, 0, 1, world=3, batch_norm=True)] == [5]


@pytest.mark.parametrize(("n", "batch", "steps", "batch_norm"), list(itertools.product([1, 7, 64, 65], [8, 64], [None, 3], [False, True])))
def test_steps_in_epoch_counts_the_batches(n, batch, steps, batch_norm):
    batches = list(epoch_batches(n, batch, steps, 0, 1, 1, batch_norm))
    assert len(batches) == steps_in_epoch(n, batch, steps, 1, batch_norm)
    assert steps is not None or batch_norm or len(batches) == math.ceil(n / batch)


def test_mix_depends_on_every_part_and_their_places():
    seeds = [mix("epoch", 1, 11), mix("epoch", 11, 1), mix("augment", 1, 11), mix("epoch", 1, 11, 0), mix("epoch", 1, 1)]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix("epoch", 1, 11) == seeds[0]
