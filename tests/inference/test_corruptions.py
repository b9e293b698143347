"""The 15 corruptions: shape, severity, and noise that depends on the key alone."""

import numpy as np
import pytest
from drawn_images import photo
from scipy.stats import poisson

from imago.inference.corruptions import CORRUPTIONS, SEVERITIES, corrupt

KEYS = np.arange(1, 7, dtype=np.uint64)
# Not at each step: parameters of several numbers need not all grow, and the sides of 30 and 24 px fall on other pixels.
NOT_MONOTONE = {"glass_blur", "elastic_transform", "frost", "snow", "motion_blur", "pixelate"}


def photos(size: int, number: int = 6) -> np.ndarray:
    """Coarse shapes with some grain, uint8 (number, 3, size, size)."""
    grain = np.random.default_rng(0).normal(0, 6, (number, size, size, 3))
    images = np.stack([photo(seed, size) for seed in range(number)]) * 0.7 + 30 + grain
    return np.clip(images, 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)


def squared_error(images: np.ndarray, corrupted: np.ndarray) -> float:
    return float(((images.astype(float) - corrupted) ** 2).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (2, 3, 48, 31), (1, 3, 224, 224)])
def test_shape_and_dtype_stay_and_no_image_becomes_black(name: str, shape: tuple[int, ...]):
    images = np.ascontiguousarray(photos(max(shape), shape[0])[:, :, : shape[2], : shape[3]])
    before = images.copy()
    corrupted = corrupt(images, name, 5, KEYS[: shape[0]])
    assert (corrupted.shape, corrupted.dtype) == (shape, np.uint8)
    assert (images == before).all()
    assert corrupted.mean() > images.mean() / 3
    assert squared_error(images, corrupted) > 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_differs_more_from_the_image(name: str):
    images = photos(32)
    errors = [squared_error(images, corrupt(images, name, severity, KEYS)) for severity in SEVERITIES]
    if name != "elastic_transform":
        assert errors[4] > 1.15 * errors[0], errors
    if name not in NOT_MONOTONE:
        assert errors == sorted(errors), errors


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_depends_on_its_key_and_not_on_the_other_images(name: str):
    images = photos(32)
    corrupted = corrupt(images, name, 3, KEYS)
    assert (corrupt(images, name, 3, KEYS) == corrupted).all()
    for row in range(len(images)):
        assert (corrupt(images[row : row + 1], name, 3, KEYS[row : row + 1]) == corrupted[row]).all()
    is_random = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert (corrupt(images, name, 3, KEYS + np.uint64(100)) != corrupted).any() == is_random
    if is_random:  # of equal images with different keys
        same = corrupt(np.repeat(images[:1], 6, axis=0), name, 3, KEYS)
        assert all((same[0] != other).any() for other in same[1:])


def test_noise_has_the_published_strength():
    gray, keys = np.full((40, 3, 32, 32), 128, np.uint8), np.arange(40, dtype=np.uint64)
    gaussian = corrupt(gray, "gaussian_noise", 5, keys) / 255
    assert gaussian.std() == pytest.approx(0.1, rel=0.02)
    assert gaussian.mean() == pytest.approx(128 / 255, abs=0.002)
    shot = corrupt(gray, "shot_noise", 5, keys) / 255
    rate = 50 * 128 / 255
    assert shot.mean() == pytest.approx(128 / 255, abs=0.003)
    assert shot.std() == pytest.approx(np.sqrt(rate) / 50, rel=0.02)
    share_below = np.mean(np.rint(shot * 50) <= 20)  # of the counts, against another implementation
    assert share_below == pytest.approx(poisson.cdf(20, rate), abs=0.01)
    impulse = corrupt(gray, "impulse_noise", 5, keys)
    assert np.mean(impulse == 255) == pytest.approx(0.035, abs=0.003)
    assert np.mean(impulse == 0) == pytest.approx(0.035, abs=0.003)


def test_parameters_are_those_of_imagenet_c_at_224_px_and_between_in_between():
    stds = {}
    for size in (16, 32, 84, 224, 300):
        gray = np.full((4, 3, size, size), 128, np.uint8)
        stds[size] = (corrupt(gray, "gaussian_noise", 1, KEYS[:4]) / 255).std()
    assert stds[224] == pytest.approx(0.08, rel=0.02)
    assert stds[300] == pytest.approx(0.08, rel=0.02)
    assert stds[16] == pytest.approx(stds[32], rel=0.1)
    assert stds[84] == pytest.approx(0.04 + 0.04 * np.log(84 / 32) / np.log(7), rel=0.02)


def test_brightness_contrast_and_blur_follow_their_formulas():
    images = photos(32, 2)
    values = images.astype(float)
    contrast = corrupt(images, "contrast", 2, KEYS[:2])
    mean = values.mean(axis=(2, 3), keepdims=True)
    assert np.abs(contrast - (mean + 0.5 * (values - mean))).max() <= 0.51
    brighter = corrupt(images, "brightness", 2, KEYS[:2]).max(axis=1).astype(float)
    assert np.abs(brighter - np.minimum(255, values.max(axis=1) + 25.5)).max() <= 0.51
    black = np.zeros((1, 3, 8, 8), np.uint8)
    assert (corrupt(black, "brightness", 2, KEYS[:1]) == 26).all()
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "pixelate"):
        flat = np.full((2, 3, 32, 32), 200, np.uint8)
        assert (corrupt(flat, name, 5, KEYS[:2]) == 200).all(), name


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if not name.endswith("noise") and name != "frost"])
def test_a_gray_image_stays_gray(name: str):
    gray = np.repeat(photos(32, 2)[:, :1], 3, axis=1)
    corrupted = corrupt(gray, name, 4, KEYS[:2]).astype(int)
    assert np.ptp(corrupted, axis=1).max() <= 1
