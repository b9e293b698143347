"""Sample order: each sample once, by seed and epoch only, sharded over ranks without overlap."""

import numpy as np
import pytest

from imago.data.sampling import BatchIndices, EvalSampler, TrainSampler, WindowSampler, chunk_places


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


# WindowSampler

CHUNKS = np.repeat(np.arange(20), 15)  # 20 chunks of 15 samples each


def window_sampler(rank: int = 0, num_ranks: int = 1, window: int = 4, chunks: np.ndarray = CHUNKS) -> WindowSampler:
    classes = np.zeros(len(set(chunks.tolist())), np.int64)
    return WindowSampler(len(chunks), 10, 3, rank, num_ranks, chunks=chunks, chunk_classes=classes, window=window)


def test_a_window_holds_all_samples_of_its_chunks_mixed():
    order = epoch_order(window_sampler(), 5)
    assert sorted(order) == list(range(300))
    windows = CHUNKS[order].reshape(5, 60)
    assert [len(set(window)) for window in windows] == [4] * 5
    assert len({chunk for window in windows for chunk in set(window)}) == 20
    changes = (np.diff(windows, axis=1) != 0).mean()  # of chunk from sample to sample; at random it is 45 of 59
    assert 0.65 < changes < 0.85


def test_chunks_of_one_class_are_evenly_spread_and_their_order_is_random():
    classes = np.repeat([0, 1, 2, 3], [24, 12, 6, 6])  # sorted by class
    in_order = [classes[np.argsort(chunk_places(classes, 1, epoch))] for epoch in range(200)]
    for order in in_order:
        for size in (8, 16):  # 1/6 and 1/3 of the epoch
            found = [np.bincount(part, minlength=4) for part in np.array_split(order, 48 // size)]
            wanted = np.array([24, 12, 6, 6]) * size / 48
            assert np.abs(np.array(found) - wanted).max() <= 2
    places = np.array([chunk_places(classes, 1, epoch) for epoch in range(200)])
    assert sorted(places[0].tolist()) == list(range(48))
    np.testing.assert_array_equal(places[3], chunk_places(classes, 1, 3))
    assert np.abs(places.mean(axis=0) - 23.5).max() < 5 * 13.9 / 200**0.5  # standard deviation of 0 .. 47


def test_the_order_of_windows_depends_on_seed_and_epoch_only():
    sampler = window_sampler()
    orders = [epoch_order(sampler, epoch) for epoch in (0, 1, 0)]
    np.testing.assert_array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], orders[1])
    first_chunks = [frozenset(CHUNKS[order[:60]]) for order in orders]
    assert first_chunks[0] != first_chunks[1]


def test_a_window_of_all_chunks_mixes_the_whole_dataset():
    order = epoch_order(window_sampler(window=20), 0)
    position = np.empty(300)
    position[order] = np.arange(300)
    means = position.reshape(20, 15).mean(axis=1)  # of the samples of a chunk; 149.5 with a standard error of 22
    assert np.abs(means - 149.5).max() < 5 * 22


@pytest.mark.parametrize("num_ranks", [2, 5])
def test_ranks_have_disjoint_samples_and_share_only_the_chunks_at_their_borders(num_ranks: int):
    chunks = np.concatenate([CHUNKS, np.full(7, 20)])
    orders = [epoch_order(window_sampler(rank, num_ranks, chunks=chunks), 1) for rank in range(num_ranks)]
    assert len({len(order) for order in orders}) == 1
    assert len(set(np.concatenate(orders).tolist())) == 300
    num_opened = sum(len(set(chunks[order])) for order in orders)
    assert num_opened <= 21 + num_ranks - 1


def test_no_chunk_is_opened_again_after_its_window():
    for rank in range(2):
        opened = CHUNKS[epoch_order(window_sampler(rank, 2), 7)]
        last, first = {}, {}
        for place, chunk in enumerate(opened.tolist()):
            first.setdefault(chunk, place)
            last[chunk] = place
        assert max(last[chunk] - first[chunk] for chunk in first) < 4 * 15


def test_a_resumed_epoch_of_windows_continues_the_same_order():
    whole, resumed = list(window_sampler()), window_sampler()
    resumed.start_batch = 11
    for batch, expected in zip(resumed, whole[11:], strict=True):
        np.testing.assert_array_equal(batch.indices, expected.indices)


def test_a_part_of_the_chunks_is_shuffled_alike():
    chunks = CHUNKS[(CHUNKS % 3 == 0) & (np.arange(300) % 2 == 0)]
    order = epoch_order(window_sampler(chunks=chunks), 0)
    assert len(order) == len(chunks) // 10 * 10
    assert len(set(order.tolist())) == len(order)


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
