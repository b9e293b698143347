"""How images of one's own are evaluated: the size that suits them, and the mean and std of their channels."""

from collections.abc import Iterable, Sequence

import numpy as np

from imago.images import SMALL_PX, Preprocess, resize_and_crop

LARGE = Preprocess(size=224, resize=256, crop="center", mean=(0.0,) * 3, std=(1.0,) * 3)  # as ImageNet nets are tested


def describe_images(images: Sequence[np.ndarray]) -> Preprocess:
    """Say how images like these are evaluated.

    Args:
        images: uint8 (H, W, 3), those over `SMALL_PX` already as `shrink` leaves them.

    Returns:
        `LARGE`, or for small images the largest of their shorter sides as size, without any scaling if all are
        squares of that size; with mean and std of the evaluated images.
    """
    if max(max(pixels.shape[:2]) for pixels in images) <= SMALL_PX:
        size = max(min(pixels.shape[:2]) for pixels in images)
        shape = LARGE.to_dict() | {"size": size, "resize": size}
    else:
        shape = LARGE.to_dict()
    own = Preprocess.from_dict(shape)
    evaluated = (square if max(square.shape[:2]) > SMALL_PX else resize_and_crop(square, own) for square in images)
    mean, std = channel_statistics(evaluated)
    return Preprocess.from_dict(shape | {"mean": mean, "std": std})


def channel_statistics(images: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and std per channel, of pixels in [0, 1], over images uint8 (H, W, 3)."""
    counts = np.zeros((3, 256), np.int64)
    for pixels in images:
        counts += [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)]
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(counts @ levels**2 / counts.sum(axis=1) - mean**2)
    # A channel without any contrast (black masks) would otherwise be divided by zero.
    return tuple(mean.tolist()), tuple(std.clip(min=1 / 255).tolist())


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Keep small images, and of the others only what is evaluated: a sample of photographs fits in memory then."""
    return pixels if max(pixels.shape[:2]) <= SMALL_PX else resize_and_crop(pixels, LARGE)
