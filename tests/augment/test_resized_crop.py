"""Random resized crops: areas and ratios as requested, pixels within 1 of Pillow's."""

import numpy as np
import pytest
from PIL import Image

from imago.augment.crop_flip import sample_crop_flip
from imago.augment.resized_crop import crop_box, crop_uniforms, limit_shorter_side, limited_sides, random_resized_crops
from imago.augment.settings import Augment


def photograph(height: int, width: int) -> np.ndarray:
    """Return smooth shades with some noise, like a photograph: uint8 (height, width, 3)."""
    down, right = np.mgrid[:height, :width]
    shades = np.stack([down * 255 / height, right * 255 / width, 128 + 100 * np.sin(down / 9 + right / 7)], axis=2)
    return (shades + np.random.default_rng(0).normal(0, 12, shades.shape)).clip(0, 255).astype(np.uint8)


def boxes(height: int, width: int, scale: tuple[float, float], count: int = 2000) -> np.ndarray:
    """Draw crops of an image: int64 (count, 4)."""
    uniforms = crop_uniforms(0, 0, np.arange(count))
    return np.array([crop_box(height, width, scale, uniforms[index]) for index in range(count)])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (64, 64), (3, 4), (1, 1), (1, 4000), (4000, 1)])
def test_crops_are_inside_the_image_and_not_empty(height: int, width: int):
    left, top, right, bottom = boxes(height, width, (0.08, 1.0), 200).T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    assert (right - left).min() >= 1
    assert (bottom - top).min() >= 1


def test_crops_have_the_requested_areas_and_ratios():
    left, top, right, bottom = boxes(375, 500, (0.35, 0.6)).T
    area = (right - left) * (bottom - top) / (375 * 500)
    ratio = (right - left) / (bottom - top)
    assert 0.345 < area.min() < 0.36
    assert 0.59 < area.max() < 0.605
    assert area.mean() == pytest.approx(0.475, abs=0.01)
    assert 0.745 < ratio.min() < 0.76
    assert 1.31 < ratio.max() < 1.345
    assert np.median(ratio) == pytest.approx(1, abs=0.02)


def test_crops_reach_every_edge_of_the_image():
    left, top, right, bottom = boxes(40, 50, (0.35, 0.5)).T
    assert (left.min(), top.min(), right.max(), bottom.max()) == (0, 0, 50, 40)


def test_an_image_that_no_crop_fits_into_is_cropped_at_its_center():
    assert crop_box(1, 4000, (0.9, 1.0), crop_uniforms(0, 0, np.arange(1))[0]) == (1999, 0, 2000, 1)
    assert crop_box(300, 90, (1.0, 1.0), crop_uniforms(0, 0, np.arange(1))[0]) == (0, 90, 90, 210)


def test_a_sample_draws_the_same_resized_crop_alone_and_in_any_batch():
    batch = crop_uniforms(5, 2, np.arange(100, 140))
    np.testing.assert_array_equal(batch[7:8], crop_uniforms(5, 2, np.array([107])))
    assert len(np.unique(batch)) == batch.size


def test_a_resized_crop_does_not_change_the_flips():
    indices = np.arange(1000)
    with_crop = Augment(flip_probability=0.5, random_resized_crop_scale=(0.35, 1.0))
    np.testing.assert_array_equal(
        sample_crop_flip(with_crop, 0, 0, indices).flip, sample_crop_flip(Augment(0, 0.5), 0, 0, indices).flip
    )


@pytest.mark.parametrize("scale", [(0.05, 0.1), (0.35, 1.0), (1.0, 1.0)])
def test_a_resized_crop_is_the_crop_as_pillow_scales_it(scale: tuple[float, float]):
    """Enlarged and reduced, with the same filter; vector instructions may round the other way."""
    pixels, augment, key = photograph(150, 200), Augment(random_resized_crop_scale=scale), (3, 0, np.arange(12))
    squares = random_resized_crops([pixels] * 12, 64, augment, key)
    for square, uniforms in zip(squares, crop_uniforms(*key), strict=True):
        left, top, right, bottom = crop_box(150, 200, scale, uniforms)
        cut = Image.fromarray(pixels[top:bottom, left:right])
        expected = np.asarray(cut.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
        assert abs(square - expected).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_the_smallest_images_become_squares_too(shape: tuple[int, int]):
    pixels = np.full((*shape, 3), 77, np.uint8)
    augment = Augment(random_resized_crop_scale=(0.35, 1.0))
    for square in random_resized_crops([pixels] * 5, 32, augment, (0, 0, np.arange(5))):
        assert square.shape == (32, 32, 3)
        assert (square == 77).all()


def test_squares_of_read_only_images_are_contiguous_in_height_width_channel_order():
    """Batches are then assembled by plain copies, several times faster than with permuted axes."""
    pixels = photograph(40, 50)
    pixels.flags.writeable = False
    (square,) = random_resized_crops([pixels], 16, Augment(random_resized_crop_scale=(0.3, 0.8)), (0, 0, np.arange(1)))
    assert square.flags.c_contiguous
    assert limit_shorter_side(pixels, 20).flags.c_contiguous


# Scaled down once


@pytest.mark.parametrize(
    ("height", "width", "max_shorter_side_px", "expected"),
    [
        (375, 500, 256, (256, 341)),
        (500, 375, 256, (341, 256)),
        (300, 300, 256, (256, 256)),
        (256, 900, 256, (256, 900)),  # never enlarged
        (100, 900, 256, (100, 900)),
        (375, 500, None, (375, 500)),
        (2, 3001, 1, (1, 1500)),
    ],
)
def test_the_shorter_side_is_limited_and_the_ratio_is_kept(height, width, max_shorter_side_px, expected):
    assert limited_sides(height, width, max_shorter_side_px) == expected
    assert limit_shorter_side(np.zeros((height, width, 3), np.uint8), max_shorter_side_px).shape == (*expected, 3)


def test_an_image_is_scaled_down_as_by_pillow_and_a_small_one_is_not_copied():
    pixels = photograph(150, 200)
    expected = np.asarray(Image.fromarray(pixels).resize((80, 60), Image.Resampling.BILINEAR)).astype(int)
    assert abs(limit_shorter_side(pixels, 60) - expected).max() <= 1
    assert limit_shorter_side(pixels, 150) is pixels
