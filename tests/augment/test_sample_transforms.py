"""Transforms of single images: their effects, and draws that do not depend on the batch or the process."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from imago.augment.sample_transforms import transform_images
from imago.augment.settings import Augment

EVERYTHING = Augment(rotation_degrees=20, policy="randaugment", gray_probability=0.5, blur_probability=0.5)
KINDS = {
    "rotation": Augment(rotation_degrees=30),
    "randaugment": Augment(policy="randaugment"),
    "trivialaugment": Augment(policy="trivialaugment"),
    "gray": Augment(gray_probability=0.5),
    "blur": Augment(blur_probability=0.5),
    "everything": EVERYTHING,
}


def samples(count: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def changed(images: np.ndarray, transformed: np.ndarray) -> np.ndarray:
    return (images != transformed).any(axis=(1, 2, 3))


def test_without_such_settings_the_images_are_returned_unchanged():
    images = samples(2)
    assert transform_images(images, Augment(4, 0.5), (0, 0, np.arange(2))) is images


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_looks_the_same_alone_and_in_any_batch(kind: str):
    images, indices = samples(12), np.arange(40, 52)
    batch = transform_images(images, KINDS[kind], (5, 2, indices))
    assert (batch.shape, batch.dtype) == (images.shape, np.uint8)
    assert changed(images, batch).sum() >= 3
    order = np.random.default_rng(1).permutation(12)
    shuffled = transform_images(images[order], KINDS[kind], (5, 2, indices[order]))
    np.testing.assert_array_equal(shuffled, batch[order])
    for index in (0, 7):
        alone = transform_images(images[index : index + 1], KINDS[kind], (5, 2, indices[index : index + 1]))
        np.testing.assert_array_equal(alone[0], batch[index])


@pytest.mark.parametrize("other", [(6, 2), (5, 3)])
def test_another_seed_or_epoch_has_other_draws(other: tuple[int, int]):
    images, indices = samples(12), np.arange(12)
    first, second = (transform_images(images, EVERYTHING, (*key, indices)) for key in ((5, 2), other))
    assert changed(first, second).sum() >= 10


def test_a_sample_that_occurs_twice_in_an_epoch_is_transformed_differently():
    twice = np.repeat(samples(1), 2, axis=0)
    epochs, indices = np.array([3, 3 + 2**32]), np.array([9, 9])
    first, second = transform_images(twice, KINDS["rotation"], (0, epochs, indices))
    assert (first != second).any()
    plain = transform_images(twice[:1], KINDS["rotation"], (0, 3, indices[:1]))
    np.testing.assert_array_equal(plain[0], first)


def test_the_given_images_and_the_state_of_torchs_generator_and_threads_are_kept():
    images = samples(3)
    before = images.copy(), torch.get_rng_state(), torch.get_num_threads()
    transform_images(images, EVERYTHING, (0, 0, np.arange(3)))
    np.testing.assert_array_equal(images, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.get_num_threads() == before[2]


def test_turning_one_transform_on_does_not_change_the_draws_of_another():
    images, key = samples(40), (0, 0, np.arange(40))
    gray = transform_images(images, Augment(gray_probability=0.5), key)
    both = transform_images(images, Augment(gray_probability=0.5, rotation_degrees=45), key)
    is_gray, is_gray_too = ((found[:, 0] == found[:, 2]).all(axis=(1, 2)) for found in (gray, both))
    assert 8 < is_gray.sum() < 32
    np.testing.assert_array_equal(is_gray, is_gray_too)


@pytest.mark.parametrize("name", ["gray_probability", "blur_probability"])
def test_gray_and_blur_have_the_requested_probability(name: str):
    images, indices = samples(300, side=6), np.arange(300)
    some, every = (
        transform_images(images, Augment(**{name: share}, blur_sigma_px=[1.0, 2.0]), (0, 0, indices))
        for share in (0.25, 1.0)
    )
    assert changed(images, some).mean() == pytest.approx(0.25, abs=0.08)
    assert changed(images, every).all()


def test_gray_is_the_luma_of_the_image():
    images = samples(1)
    gray = transform_images(images, Augment(gray_probability=1.0), (0, 0, np.arange(1)))[0]
    luma = np.asarray(Image.fromarray(images[0].transpose(1, 2, 0)).convert("L")).astype(int)
    assert np.abs(gray - luma).max() <= 1


def test_blur_has_the_requested_width():
    images = samples(1, side=48)
    blurred = transform_images(images, Augment(blur_probability=1.0, blur_sigma_px=[1.5, 1.5]), (0, 0, np.arange(1)))
    pillow = Image.fromarray(images[0].transpose(1, 2, 0)).filter(ImageFilter.GaussianBlur(1.5))
    middle = np.s_[8:-8, 8:-8]  # edges are padded in another way
    ours, theirs = blurred[0].transpose(1, 2, 0)[middle].astype(int), np.asarray(pillow)[middle].astype(int)
    assert np.abs(ours - theirs).mean() < 2.5
    assert np.abs(images[0].transpose(1, 2, 0)[middle] - theirs).mean() > 20


@pytest.mark.parametrize("side", [1, 2, 5])
def test_an_image_smaller_than_the_blur_is_blurred(side: int):
    augment = Augment(blur_probability=1.0, blur_sigma_px=[3.0, 3.0])
    assert transform_images(samples(2, side), augment, (0, 0, np.arange(2))).shape == (2, 3, side, side)


def test_rotation_is_to_both_sides_up_to_the_limit():
    images = np.zeros((80, 3, 65, 65), np.uint8)
    images[:, :, 32, 45:] = 255  # a line from the center to the right
    out = transform_images(images, Augment(rotation_degrees=30), (0, 0, np.arange(80)))[:, 0].astype(float)
    rows, columns = np.mgrid[-32:33, -32:33]
    mass = out.sum(axis=(1, 2))
    angles = np.degrees(np.arctan2(-(out * rows).sum(axis=(1, 2)) / mass, (out * columns).sum(axis=(1, 2)) / mass))
    assert np.abs(angles).max() < 31
    assert (angles.min(), angles.max()) == (pytest.approx(-30, abs=3), pytest.approx(30, abs=3))


def test_a_larger_magnitude_changes_images_more():
    smooth, indices = np.broadcast_to(np.linspace(0, 255, 32), (40, 3, 32, 32)).astype(np.uint8), np.arange(40)
    weak, strong = (Augment(policy="randaugment", policy_magnitude=magnitude) for magnitude in (0, 30))
    changes = [abs(transform_images(smooth, augment, (0, 0, indices)) - 1.0 * smooth) for augment in (weak, strong)]
    assert changes[1].mean() > 1.5 * changes[0].mean()
