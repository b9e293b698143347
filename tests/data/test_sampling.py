"""Sample order: each sample once, by seed and epoch only, sharded over ranks without overlap."""

import numpy as np
import pytest

from imago.data.sampling import BatchIndices, EvalSampler, TrainSampler


def epoch_order(sampler: TrainSampler, epoch: int) -> np.ndarray:
    sampler.set_epoch(epoch)
    return np.concatenate([key.indices for key in sampler])


# TrainSampler


def test_an_epoch_holds_each_sample_at_most_once_in_full_batches_with_its_number():
    sampler = TrainSampler(103, 10, seed=0)
    sampler.set_epoch(4)
    batches = list(sampler)
    assert [(key.epoch_keys, len(key.indices)) for key in batches] == [(4, 10)] * 10
    assert len(sampler) == 10
    order = np.concatenate([key.indices for key in batches]).tolist()
    assert len(set(order)) == 100
    assert set(order) <= set(range(103))


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


def test_the_epoch_after_a_resumed_one_is_complete():
    sampler = TrainSampler(100, 10, seed=0)
    sampler.start_batch = 3
    sampler.set_epoch(1)
    assert len(list(sampler)) == 10


@pytest.mark.parametrize("labels", [None, np.repeat([0, 1, 2], [60, 30, 10])], ids=["shuffle", "balanced"])
def test_the_first_epoch_can_be_repeated_with_other_random_draws(labels: np.ndarray | None):
    first = list(TrainSampler(100, 10, seed=0, labels=labels))
    sampler = TrainSampler(100, 10, seed=0, labels=labels, repeats_first_epoch=True)
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        for key, expected in zip(sampler, first, strict=True):
            np.testing.assert_array_equal(key.indices, expected.indices)
            np.testing.assert_array_equal(key.epoch_keys, expected.epoch_keys + epoch)


def test_a_set_smaller_than_a_batch_is_one_batch():
    batches = list(TrainSampler(5, 8, seed=0))
    assert [sorted(key.indices.tolist()) for key in batches] == [[0, 1, 2, 3, 4]]


# EvalSampler


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 10, 11, 12])
def test_ranks_together_count_each_sample_once_without_padding(num_samples: int, num_ranks: int):
    samplers = [EvalSampler(num_samples, 4, rank, num_ranks) for rank in range(num_ranks)]
    seen = [int(index) for sampler in samplers for key in sampler for index in key.indices]
    assert sorted(seen) == list(range(num_samples))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


# Balanced


IMBALANCED = np.repeat([0, 1, 2], [60, 30, 10])


def balanced(epoch: int = 0, **share: int) -> list[BatchIndices]:
    sampler = TrainSampler(100, 20, seed=0, **share, labels=IMBALANCED)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_a_balanced_epoch_has_as_many_batches_and_every_class_equally_often():
    keys = balanced()
    assert [len(key.indices) for key in keys] == [20] * 5
    shown = np.bincount(IMBALANCED[np.concatenate([key.indices for key in keys])])
    assert sorted(shown.tolist()) == [33, 33, 34]


def test_a_rare_class_repeats_all_its_images_equally_often():
    indices = np.concatenate([key.indices for key in balanced()])
    times = np.bincount(indices, minlength=100)
    assert set(times[90:].tolist()) <= {3, 4}
    assert times[:60].max() == 1


def test_repetitions_within_an_epoch_have_different_keys():
    pairs = [(int(epoch), int(index)) for key in balanced() for epoch, index in zip(*key, strict=True)]
    assert len(set(pairs)) == len(pairs) == 100


def test_over_many_epochs_every_image_of_a_class_is_shown_about_equally_often():
    shown = np.array([key.indices for epoch in range(200) for key in balanced(epoch)])
    times = np.bincount(shown.ravel(), minlength=100)
    for members in ([*range(60)], [*range(60, 90)], [*range(90, 100)]):
        of_class = times[members]
        mean = of_class.mean()
        assert of_class.sum() == pytest.approx(200 * 100 / 3, abs=200)
        # Of m images, an epoch draws a share p of them once more than the rest: over 200 epochs, a binomial.
        share = mean / 200 % 1
        spread = (200 * share * (1 - share)) ** 0.5
        assert abs(of_class - mean).max() < 4.5 * spread


def test_ranks_share_each_balanced_batch():
    whole = balanced()
    shares = [balanced(rank=rank, num_ranks=2) for rank in (0, 1)]
    for key, left, right in zip(whole, *shares, strict=True):
        assert sorted(key.indices) == sorted([*left.indices, *right.indices])
