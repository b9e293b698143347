"""Random parts of images scaled to squares, and images scaled down once: the hot path of photographs.

torch scales uint8 with vector instructions, several times faster than Pillow and within 1 of 255 of it. Evaluation does
not come here: it is Pillow's, in `imago.images`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from imago.augment.crop_flip import SampleKey
from imago.augment.settings import Augment
from imago.seeding import random_bits

_RESIZED_CROP = 4  # tells these draws from the others of a sample, which `augmentation` lists
_MIN_RATIO, _MAX_RATIO = 3 / 4, 4 / 3  # width to height (Szegedy et al. 2015, section 6)
_ATTEMPTS = 10  # as torchvision's RandomResizedCrop, before it gives up and takes the middle


def random_resized_crops(
    images: Iterable[np.ndarray], size: int, augment: Augment, key: SampleKey
) -> Iterator[np.ndarray]:
    """Cut a random part out of each image and scale it to a square.

    Args:
        images: B images uint8 (H, W, 3), of any sizes.
        size: side of the squares, in pixels.
        augment: with `random_resized_crop_scale`.
        key: of the B samples.

    Yields:
        uint8 (size, size, 3).

    Source: Szegedy et al. 2015, section 6 (arXiv:1409.4842), in the form of torchvision's RandomResizedCrop.
    """
    assert augment.random_resized_crop_scale is not None, "the caller asks for it only where it is set"
    for pixels, uniforms in zip(images, crop_uniforms(*key), strict=True):
        height, width = pixels.shape[:2]
        left, top, right, bottom = crop_box(height, width, augment.random_resized_crop_scale, uniforms)
        yield _scale(pixels[top:bottom, left:right], size, size)


def crop_box(height: int, width: int, scale: Sequence[float], uniforms: np.ndarray) -> tuple[int, int, int, int]:
    """Choose a part of an image.

    Args:
        height: of the image, in pixels.
        width: likewise.
        scale: smallest and largest share of the area.
        uniforms: numbers in [0, 1), shape (A, 4): for each attempt area, ratio of the sides, left and top. The first
            attempt that fits counts.

    Returns:
        Left, top, right and bottom in pixels; the middle, as large as the ratio of the sides allows, if none fits.
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
    """Draw numbers in [0, 1) for the crops of a batch: float64 (B, attempts, 4)."""
    attempt, number = np.arange(_ATTEMPTS)[:, None], np.arange(4)
    epochs, samples = (part[:, None, None] for part in np.broadcast_arrays(epoch, indices))
    bits = random_bits(seed, epochs, samples, _RESIZED_CROP, attempt, number)
    return (bits >> np.uint64(11)) * 2.0**-53  # the 53 bits that a float64 holds


def limit_shorter_side(pixels: np.ndarray, most_px: int | None) -> np.ndarray:
    """Scale an image down until its shorter side is `most_px`; a smaller one, or None, leaves it as it is.

    Args:
        pixels: uint8 (H, W, 3).
        most_px: length of the shorter side, in pixels.

    Returns:
        uint8 (h, w, 3), with the sides that `limited_sides` tells.
    """
    height, width = limited_sides(pixels.shape[0], pixels.shape[1], most_px)
    return pixels if (height, width) == pixels.shape[:2] else _scale(pixels, height, width)


def limited_sides(height: int, width: int, most_px: int | None) -> tuple[int, int]:
    """Tell the height and width of an image after `limit_shorter_side`, in pixels."""
    if most_px is None or min(height, width) <= most_px:
        return height, width
    scale = most_px / min(height, width)
    return max(most_px, round(height * scale)), max(most_px, round(width * scale))


def _scale(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    # The copy is of the part alone, and pays: torch scales rows without gaps as they are, and may write to it. With the
    # batch axis in front before the others are turned, it sees their order in memory and keeps it.
    batch = torch.from_numpy(pixels.copy()).unsqueeze(0).permute(0, 3, 1, 2)
    scaled = interpolate(batch, (height, width), mode="bilinear", antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()
