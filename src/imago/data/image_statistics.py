"""Compute the default preprocessing of a dataset: size, and mean and std per channel."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from imago.images import MAX_SMALL_PX, Preprocess, resize_and_crop

# Images from which mean and std are computed: a standard error of the mean below 0.01; our own choice.
MAX_STATISTICS_IMAGES = 512
# Size and crop of the usual evaluation on ImageNet.
LARGE_IMAGE_PREPROCESS = Preprocess(size=224, resize=256, crop="center", mean=(0.0,) * 3, std=(1.0,) * 3)


def preprocess_for_images(images: Sequence[np.ndarray]) -> Preprocess:
    """Choose the size for a sample of images uint8 (H, W, 3), and compute mean and std of the preprocessed images.

    Those over `MAX_SMALL_PX` are already resized by `shrink`. Small images get the largest of their shorter sides as
    size, so that squares of one size are not scaled; others get `LARGE_IMAGE_PREPROCESS`.
    """
    preprocess = LARGE_IMAGE_PREPROCESS
    if max(max(pixels.shape[:2]) for pixels in images) <= MAX_SMALL_PX:
        size = max(min(pixels.shape[:2]) for pixels in images)
        preprocess = replace(LARGE_IMAGE_PREPROCESS, size=size, resize=size)
    prepared = (
        pixels if max(pixels.shape[:2]) > MAX_SMALL_PX else resize_and_crop(pixels, preprocess) for pixels in images
    )
    return replace(preprocess, **channel_statistics(prepared))


def channel_statistics(images: Iterable[np.ndarray]) -> dict[str, Any]:
    """Compute mean and std per channel, of all pixels in [0, 1] of images uint8 (H, W, 3); std is at least 1 / 255."""
    counts = np.zeros((3, 256), np.int64)
    for pixels in images:
        counts += [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)]
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(counts @ levels**2 / counts.sum(axis=1) - mean**2)
    # A channel without any contrast (black masks) would otherwise be divided by zero.
    return {"mean": tuple(mean.tolist()), "std": tuple(std.clip(min=1 / 255).tolist())}


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Preprocess a large image and return a small one unchanged, so that a sample of photographs fits in memory."""
    return pixels if max(pixels.shape[:2]) <= MAX_SMALL_PX else resize_and_crop(pixels, LARGE_IMAGE_PREPROCESS)
