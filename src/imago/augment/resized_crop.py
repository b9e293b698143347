"""Crop and resize training images at random, and scale decoded images down for the cache.

torch resizes uint8 images several times faster than Pillow; results differ by at most 1 of 255. Evaluation uses
Pillow, in `imago.images`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from imago.augment.crop_flip import SampleKey
from imago.augment.settings import Augment
from imago.seeding import random_bits

_RESIZED_CROP_KEY = 4  # the last part of a key; `crop_flip` lists the others
_MIN_RATIO, _MAX_RATIO = 3 / 4, 4 / 3  # aspect ratio, width / height (Szegedy et al. 2015, section 6)
_NUM_ATTEMPTS = 10  # as torchvision's RandomResizedCrop, which then takes the center


def random_resized_crops(
    images: Iterable[np.ndarray], size: int, augment: Augment, key: SampleKey
) -> Iterator[np.ndarray]:
    """Crop a random part of each of B images uint8 (H, W, 3), of any sizes, and scale it: uint8 (size, size, 3).

    Source: Szegedy et al. 2015, section 6 (arXiv:1409.4842), in the form of torchvision's RandomResizedCrop.
    """
    assert augment.random_resized_crop_scale is not None, "callers check that the setting is on"
    for pixels, uniforms in zip(images, crop_uniforms(*key), strict=True):
        height, width = pixels.shape[:2]
        left, top, right, bottom = crop_box(height, width, augment.random_resized_crop_scale, uniforms)
        yield _resize(pixels[top:bottom, left:right], size, size)


def crop_box(height: int, width: int, scale: Sequence[float], uniforms: np.ndarray) -> tuple[int, int, int, int]:
    """Choose the part of an image that a random resized crop keeps: left, top, right and bottom in pixels.

    `scale` is the smallest and largest share of the area; `uniforms` are numbers in [0, 1), (attempts, 4): area, aspect
    ratio, left and top. The first attempt that fits is used; without one, the largest center crop of an allowed ratio.
    """
    for u_area, u_ratio, u_left, u_top in uniforms.tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
        ratio = _MIN_RATIO * (_MAX_RATIO / _MIN_RATIO) ** u_ratio
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(u_left * (width - crop_width + 1)), int(u_top * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, max(1, round(height * _MAX_RATIO)))
    crop_height = min(height, max(1, round(width / _MIN_RATIO)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def crop_uniforms(seed: int, epoch: int | np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return random numbers in [0, 1) for the crops of a batch, float64 (B, attempts, 4)."""
    attempt, number = np.arange(_NUM_ATTEMPTS)[:, None], np.arange(4)
    epochs, samples = (values[:, None, None] for values in np.broadcast_arrays(epoch, indices))
    bits = random_bits(seed, epochs, samples, _RESIZED_CROP_KEY, attempt, number)
    return (bits >> np.uint64(11)) * 2.0**-53  # a float64 holds 53 bits


def limit_shorter_side(pixels: np.ndarray, max_shorter_side_px: int | None) -> np.ndarray:
    """Scale an image uint8 (H, W, 3) down until its shorter side is at most `max_shorter_side_px`; None: no limit.

    An image that is small enough is returned as it is. The sides of the result are those of `limited_sides`.
    """
    height, width = limited_sides(pixels.shape[0], pixels.shape[1], max_shorter_side_px)
    return pixels if (height, width) == pixels.shape[:2] else _resize(pixels, height, width)


def limited_sides(height: int, width: int, max_shorter_side_px: int | None) -> tuple[int, int]:
    """Return the height and width of an image after `limit_shorter_side`, in pixels."""
    if max_shorter_side_px is None or min(height, width) <= max_shorter_side_px:
        return height, width
    scale = max_shorter_side_px / min(height, width)
    return max(max_shorter_side_px, round(height * scale)), max(max_shorter_side_px, round(width * scale))


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    # Copied, because torch is fastest on contiguous rows and does not support read-only arrays. The batch dimension
    # is added before the dimensions are permuted, so that torch recognizes the channels_last format and keeps it.
    batch = torch.from_numpy(pixels.copy()).unsqueeze(0).permute(0, 3, 1, 2)
    scaled = interpolate(batch, (height, width), mode="bilinear", antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()
