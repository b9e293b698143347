"""Provide counter-based random numbers: each number is a pure function of its key.

A draw keyed by (seed, epoch, sample index) does not depend on the number of workers, the batch, the numpy release or
interruptions of the run. The generator is SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195), applied
to all samples at once in unsigned 64-bit integers.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # odd integer nearest to 2**64 / golden ratio, from the paper
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # multipliers of the paper's finalizer (Stafford's variant 13)
_MIX_2 = np.uint64(0x94D049BB133111EB)

# Uses of `data.split_seed`, whose draws are independent by these keys; SETS_KEY is used without it.
TEST_KEY, FILE_STATISTICS_KEY, FOLD_KEY, PART_KEY, DATASET_STATISTICS_KEY, TORCHVISION_STATISTICS_KEY = range(1, 7)
TRAIN_FRACTION_KEY, SETS_KEY, GROUP_KEY, CORRUPTION_KEY, CHUNK_KEY = 7, 8, 9, 10, 11


def random_bits(*key: int | np.ndarray) -> np.ndarray:
    """Return 64 uniform random bits, uint64, for each key: integers or arrays of them; their order matters.

    The arrays are broadcast together; the result has their shape, () for plain integers.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            state = state + _GAMMA + np.asarray(part).astype(np.uint64)
            state = (state ^ (state >> np.uint64(30))) * _MIX_1
            state = (state ^ (state >> np.uint64(27))) * _MIX_2
            state = state ^ (state >> np.uint64(31))
    return state


def random_integers(low: int, high: int | np.ndarray, *key: int | np.ndarray) -> np.ndarray:
    """Return uniform random integers in [low, high), one per broadcast key, int64; `high - low` must be below 2**32."""
    span = np.asarray(high - low).astype(np.uint64)
    # Multiply and shift the upper 32 bits: no division, and a bias below span / 2**32.
    return ((random_bits(*key) >> np.uint64(32)) * span >> np.uint64(32)).astype(np.int64) + low


def random_permutation(num_items: int, *key: int) -> np.ndarray:
    """Return a random permutation of 0 .. num_items - 1: int64, shape (num_items,)."""
    return np.argsort(random_bits(*key, np.arange(num_items)), kind="stable")


def derive_seed(*key: int) -> int:
    """Return a seed in [0, 2**63) for `torch.manual_seed` and similar functions."""
    return int(random_bits(*key) >> np.uint64(1))


def seed_torch(seed: int, device_type: str) -> None:
    """Seed torch's generator of the CPU and that of the current device.

    `torch.manual_seed` does this for every kind of device, and formats the stack for each that is not in use: 0.3 ms.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device_type != "cpu":
        torch.get_device_module(device_type).manual_seed(seed)


@contextmanager
def seeded(*key: int, device_type: str = "cpu") -> Iterator[None]:
    """Seed the global generators of torch, numpy and random by a key; restore their states at the end."""
    import torch

    seed, numpy_state, random_state = derive_seed(*key), np.random.get_state(), random.getstate()
    devices = [] if device_type == "cpu" else [torch.accelerator.current_device_index()]
    with torch.random.fork_rng(devices, device_type=device_type):
        seed_torch(seed, device_type)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(random_state)
