"""Crops and flips: the fast batch version against a slow one, and draws that do not depend on the batch."""

import numpy as np
import pytest

from imago.augment.crop_flip import CropFlipParams, crop_and_flip, gather_crop_flip, pad, sample_crop_flip
from imago.augment.settings import Augment

AUGMENT = Augment(crop_padding_px=2, flip_probability=0.5)


def samples(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)


def slow_crop_flip(images: np.ndarray, indices: np.ndarray, params: CropFlipParams, padding_px: int) -> np.ndarray:
    """Pad, crop and flip one image after the other."""
    _, channels, height, width = images.shape
    out = []
    for index, top, left, flip in zip(indices, params.top, params.left, params.flip, strict=True):
        canvas = np.zeros((channels, height + 2 * padding_px, width + 2 * padding_px), np.uint8)
        canvas[:, padding_px : padding_px + height, padding_px : padding_px + width] = images[index]
        cut = canvas[:, top : top + height, left : left + width]
        out.append(cut[:, :, ::-1] if flip else cut)
    return np.stack(out)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_the_padding_is_zeros_or_the_reflection_at_the_edge(mode: str):
    row = np.array([1, 2, 3, 4, 5], np.uint8)
    padded = pad(np.tile(row, (1, 3, 5, 1)), 2, mode)
    assert padded[0, 2, 4].tolist() == ([0, 0, *row, 0, 0] if mode == "zeros" else [3, 2, *row, 4, 3])
    augment = Augment(crop_padding_px=2, crop_padding_mode=mode)
    crops = crop_and_flip(np.tile(row, (50, 3, 5, 1)), augment, (0, 0, np.arange(50)))
    assert (crops == 0).any() == (mode == "zeros")


@pytest.mark.parametrize(
    ("shape", "padding_px", "batch"),
    [
        ((9, 3, 32, 32), 4, 64),
        ((9, 3, 8, 6), 2, 7),
        ((9, 3, 6, 8), 3, 1),
        ((9, 3, 8, 8), 0, 5),
        ((2, 1, 1, 1), 1, 20),
        ((1, 3, 5, 1), 1, 3),
    ],
)
def test_crop_and_flip_equal_the_slow_reference(shape: tuple[int, ...], padding_px: int, batch: int):
    images = samples(*shape)
    indices = np.random.default_rng(1).integers(0, len(images), batch)
    params = sample_crop_flip(Augment(padding_px, 0.5), seed=3, epoch=1, indices=np.arange(batch))
    fast = gather_crop_flip(pad(images, padding_px), indices, params, padding_px)
    assert fast.dtype == np.uint8
    np.testing.assert_array_equal(fast, slow_crop_flip(images, indices, params, padding_px))


@pytest.mark.parametrize("padding_px", [0, 2])
def test_a_batch_that_was_just_assembled_is_cropped_and_flipped_alike(padding_px: int):
    images = samples(40, 3, 8, 8)
    augment = Augment(padding_px, 0.5, vertical_flip_probability=0.5)
    params = sample_crop_flip(augment, 1, 2, np.arange(40))
    expected = gather_crop_flip(pad(images, padding_px), np.arange(40), params, padding_px)
    np.testing.assert_array_equal(crop_and_flip(images.copy(), augment, (1, 2, np.arange(40))), expected)


def test_cropping_does_not_change_the_stored_images():
    padded = pad(samples(4, 3, 8, 8), 2)
    before = padded.copy()
    params = sample_crop_flip(AUGMENT, 0, 0, np.arange(4))
    gather_crop_flip(padded, np.arange(4), params, 2)[:] = 0
    np.testing.assert_array_equal(padded, before)


def test_all_crop_offsets_are_equally_frequent():
    params = sample_crop_flip(AUGMENT, seed=0, epoch=0, indices=np.arange(50_000))
    counts = np.bincount(params.top * 5 + params.left, minlength=25)
    assert len(counts) == 25
    assert ((counts - 2000) ** 2 / 2000).sum() < 51.2  # chi-square, 24 degrees of freedom, 99.9 %


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_flips_have_the_requested_probability(probability: float, share: float):
    flips = sample_crop_flip(Augment(0, probability), seed=0, epoch=0, indices=np.arange(40_000)).flip
    assert flips.mean() == pytest.approx(share, abs=0.01 if 0 < share < 1 else 0)


def test_flips_do_not_depend_on_the_crop_or_its_padding():
    indices = np.arange(50_000)
    params = sample_crop_flip(AUGMENT, seed=0, epoch=0, indices=indices)
    assert abs(np.corrcoef(params.flip, params.left)[0, 1]) < 0.02
    assert abs(np.corrcoef(params.flip, params.top)[0, 1]) < 0.02
    np.testing.assert_array_equal(params.flip, sample_crop_flip(Augment(0, 0.5), 0, 0, indices).flip)


@pytest.mark.parametrize("other", [{"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}])
def test_another_seed_or_epoch_has_other_draws(other: dict[str, int]):
    indices = np.arange(1000)
    first, second = sample_crop_flip(AUGMENT, 0, 0, indices), sample_crop_flip(AUGMENT, indices=indices, **other)
    same = (first.top == second.top) & (first.left == second.left) & (first.flip == second.flip)
    assert same.mean() == pytest.approx(1 / 50, abs=0.02)


def test_a_sample_draws_the_same_alone_and_in_any_batch_by_the_epoch_number_of_its_occurrence():
    epochs, indices = np.array([3, 3 + 2**32, 8]), np.array([7, 7, 9])
    together = sample_crop_flip(AUGMENT, 0, epochs, indices)
    for position, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
        alone = sample_crop_flip(AUGMENT, 0, int(epoch), np.array([index]))
        for name in ("top", "left", "flip"):
            assert getattr(together, name)[position] == getattr(alone, name)[0]


@pytest.mark.parametrize(("probability", "share"), [(0.25, 0.25), (1.0, 1.0)])
def test_vertical_flips_have_the_requested_probability_and_do_not_change_other_draws(probability: float, share: float):
    indices = np.arange(20_000)
    plain, ours = (
        sample_crop_flip(Augment(2, 0.5, vertical_flip_probability=p), 0, 0, indices) for p in (0.0, probability)
    )
    assert plain.vertical_flip is None
    assert ours.vertical_flip is not None
    assert ours.vertical_flip.mean() == pytest.approx(share, abs=0.01 if share < 1 else 0)
    for name in ("top", "left", "flip"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name))


def test_images_that_drew_a_flip_are_mirrored_and_no_others():
    images = samples(3, 3, 8, 8)
    flip, vertical_flip = np.array([True, True, False]), np.array([True, False, False])
    params = CropFlipParams(np.zeros(3, int), np.zeros(3, int), flip, vertical_flip)
    out = gather_crop_flip(pad(images, 0), np.arange(3), params, 0)
    np.testing.assert_array_equal(out[0], images[0, :, ::-1, ::-1])
    np.testing.assert_array_equal(out[1], images[1, :, :, ::-1])
    np.testing.assert_array_equal(out[2], images[2])


def test_alternate_flip_shows_both_sides_of_each_image_in_two_epochs():
    augment, indices = Augment(flip_probability=0.5, alternate_flip=True), np.arange(200)
    first, second, third = (sample_crop_flip(augment, 7, epoch, indices).flip for epoch in (0, 1, 2))
    np.testing.assert_array_equal(first, ~second)
    np.testing.assert_array_equal(first, third)
    np.testing.assert_array_equal(first, sample_crop_flip(Augment(flip_probability=0.5), 7, 0, indices).flip)
    # A batch that holds an image of several epochs, as after the end of a balanced sampler's epoch.
    mixed = sample_crop_flip(augment, 7, np.array([0, 1, 2]), np.array([5, 5, 5])).flip
    assert mixed.tolist() == [first[5], second[5], third[5]]


def test_alternate_flip_without_a_chance_of_flips_changes_nothing():
    assert not sample_crop_flip(Augment(alternate_flip=True), 0, 1, np.arange(100)).flip.any()
    described = Augment(alternate_flip=True).describe()
    assert described == "none (alternate_flip True has no effect without flip_probability)"
