"""Counter-based random numbers: they are the published ones, depend on their key alone and fill their range."""

import numpy as np
import pytest
import torch

from imago import seeding
from imago.seeding import derive_seed, random_bits, random_integers, random_permutation

MASK = 2**64 - 1


def slow_bits(*key: int) -> int:
    """Mix a key with Python's integers, straight from the paper."""
    state = 0
    for part in key:
        state = (state + 0x9E3779B97F4A7C15 + part) & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


@pytest.mark.parametrize(
    ("key", "bits"),
    [
        # First outputs of the authors' splitmix64.c for these seeds.
        ((0,), 0xE220A8397B1DCDAF),
        ((1234567,), 6457827717110365317),
        # Frozen here: a change of these values would change every run.
        ((0, 0, 0, 1), 7606012053026511699),
        ((42, 3, 49_999, 2), 7438439170592141390),
    ],
)
def test_bits_are_the_published_ones(key: tuple[int, ...], bits: int):
    assert int(random_bits(*key)) == bits


def test_bits_equal_the_slow_reference_for_keys_of_any_size():
    keys = np.random.default_rng(0).integers(0, 2**63, (200, 3))
    expected = [slow_bits(*map(int, key)) for key in keys]
    np.testing.assert_array_equal(random_bits(*keys.T), np.array(expected, np.uint64))


def test_an_array_of_keys_draws_the_numbers_of_its_elements():
    indices = np.array([5, 0, 123_456, 5])
    together = random_bits(7, indices, 1)
    assert together.dtype == np.uint64
    assert together.tolist() == [int(random_bits(7, int(index), 1)) for index in indices]


def test_integers_fill_their_range_evenly():
    draws = random_integers(-4, 5, 0, 0, np.arange(90_000))
    assert draws.dtype == np.int64
    assert sorted(set(draws.tolist())) == list(range(-4, 5))
    counts = np.bincount(draws + 4)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 27.9  # chi-square, 8 degrees of freedom, 99.95 %


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(count: int):
    permutation = random_permutation(count, 0, 0)
    assert permutation.dtype == np.int64
    np.testing.assert_array_equal(np.sort(permutation), np.arange(count))


def test_every_number_is_at_every_index_of_a_permutation_equally_often():
    orders = np.array([random_permutation(5, 0, epoch) for epoch in range(2000)])
    shares = np.array([np.bincount(orders[:, index], minlength=5) for index in range(5)]) / 2000
    np.testing.assert_allclose(shares, 0.2, atol=0.035)


def test_seeds_fit_in_63_bits():
    seeds = [derive_seed(0, step) for step in range(1000)]
    assert all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert len(set(seeds)) == 1000


def test_the_draws_of_recorded_splits_keep_their_keys():
    keys = (seeding.TEST_KEY, seeding.FILE_STATISTICS_KEY, seeding.FOLD_KEY, seeding.PART_KEY)
    assert (*keys, seeding.DATASET_STATISTICS_KEY, seeding.TORCHVISION_STATISTICS_KEY) == (1, 2, 3, 4, 5, 6)


def test_torch_draws_as_after_its_own_function_which_seeds_all_devices():
    seeding.seed_torch(7, "cpu")
    drawn = torch.rand(5)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(5))
