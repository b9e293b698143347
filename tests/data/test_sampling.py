"""Which sample comes when: each once, by seed and epoch only, shared out among ranks without overlap."""

import numpy as np
import pytest

from imago.data.sampling import EvalSampler, TrainSampler, stratified_split


def epoch_order(sampler: TrainSampler, epoch: int) -> np.ndarray:
    sampler.set_epoch(epoch)
    return np.concatenate([key.indices for key in sampler])


# TrainSampler


def test_an_epoch_holds_each_sample_at_most_once_and_leaves_out_less_than_a_batch():
    sampler = TrainSampler(103, 10, seed=0)
    order = epoch_order(sampler, 0)
    assert len(order) == len(set(order.tolist())) == 100
    assert set(order.tolist()) <= set(range(103))
    assert len(sampler) == len(list(sampler)) == 10


def test_every_batch_has_the_same_size_and_names_its_epoch():
    sampler = TrainSampler(103, 10, seed=0)
    sampler.set_epoch(4)
    assert [(key.epoch, len(key.indices)) for key in sampler] == [(4, 10)] * 10


def test_the_next_epoch_has_another_order_and_leaves_out_others():
    sampler = TrainSampler(103, 10, seed=0)
    orders = [epoch_order(sampler, epoch) for epoch in range(5)]
    left_out = {frozenset(range(103)) - frozenset(order.tolist()) for order in orders}
    assert len({order.tobytes() for order in orders}) == 5
    assert len(left_out) == 5


def test_the_order_depends_on_the_seed():
    assert not np.array_equal(*(epoch_order(TrainSampler(100, 10, seed), 0) for seed in (0, 1)))


def test_an_epoch_has_the_same_order_whatever_came_before():
    sampler = TrainSampler(100, 10, seed=0)
    epoch_order(sampler, 0)
    np.testing.assert_array_equal(epoch_order(sampler, 7), epoch_order(TrainSampler(100, 10, seed=0), 7))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_each_global_batch_evenly_and_without_overlap(num_ranks: int):
    whole = TrainSampler(50, 12, seed=0)
    shares = [TrainSampler(50, 12, 0, rank, num_ranks) for rank in range(num_ranks)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [len(part.indices) for part in parts] == [12 // num_ranks] * num_ranks
        np.testing.assert_array_equal(np.sort(np.concatenate([p.indices for p in parts])), np.sort(batch.indices))


def test_a_start_batch_continues_the_same_order():
    whole = list(TrainSampler(100, 10, seed=0))
    resumed = TrainSampler(100, 10, seed=0)
    resumed.start_batch = 3
    resumed.set_epoch(0)  # Lightning announces the epoch it resumes in
    rest = list(resumed)
    assert len(rest) == 7
    for early, late in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(early.indices, late.indices)


def test_the_epoch_after_a_resumed_one_is_whole():
    sampler = TrainSampler(100, 10, seed=0)
    sampler.start_batch = 3
    sampler.set_epoch(1)
    assert len(list(sampler)) == 10


def test_a_set_smaller_than_a_batch_is_one_batch():
    batches = list(TrainSampler(5, 8, seed=0))
    assert [sorted(key.indices.tolist()) for key in batches] == [[0, 1, 2, 3, 4]]


def test_lightning_finds_set_epoch_on_the_sampler_of_the_batch_sampler():
    sampler = TrainSampler(5, 2, seed=0)
    sampler.sampler.set_epoch(3)
    assert next(iter(sampler)).epoch == 3


# EvalSampler


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 10, 11, 12])
def test_ranks_together_count_each_sample_once_without_padding(num_samples: int, num_ranks: int):
    samplers = [EvalSampler(num_samples, 4, rank, num_ranks) for rank in range(num_ranks)]
    seen = [int(index) for sampler in samplers for key in sampler for index in key.indices]
    assert sorted(seen) == list(range(num_samples))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


def test_evaluation_goes_through_the_samples_in_order():
    keys = list(EvalSampler(10, 4))
    assert [key.indices.tolist() for key in keys] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# stratified_split

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [400, 100, 20]))


def test_a_split_is_disjoint_and_complete():
    kept, aside = stratified_split(LABELS, 0.1, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, aside])), np.arange(520))


def test_a_split_takes_the_same_share_of_every_class():
    _, aside = stratified_split(LABELS, 0.1, seed=0)
    assert np.bincount(LABELS[aside]).tolist() == [40, 10, 2]


def test_a_split_comes_back_sorted():
    for part in stratified_split(LABELS, 0.1, seed=0):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


def test_a_split_is_decided_by_its_seed_alone():
    first, again, other = (stratified_split(LABELS, 0.1, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("fraction", "expected"), [(0.001, [1, 1, 0]), (0.999, [9, 1, 0])])
def test_a_class_gives_at_least_one_and_keeps_at_least_one(fraction: float, expected: list[int]):
    labels = np.repeat([0, 1, 2], [10, 2, 1])
    _, aside = stratified_split(labels, fraction, seed=0)
    assert np.bincount(labels[aside], minlength=3).tolist() == expected
