"""What training does to pictures, one independent draw per sample, keyed by (seed, epoch, sample index).

Pure functions over whole batches; validation and test never come here.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from imago.data.keyed import keyed_bits, keyed_integers
from imago.errors import ConfigError

# Tells the draws of one sample apart, so that adding an augmentation leaves the others as they were.
_TOP, _LEFT, _FLIP, _RESIZED_CROP = 1, 2, 3, 4

_MIN_RATIO, _MAX_RATIO = 3 / 4, 4 / 3  # width to height of a random resized crop (Szegedy et al. 2015, section 6)
_ATTEMPTS = 10  # as torchvision's RandomResizedCrop, before it gives up and takes the middle

SampleKey = tuple[int, int, np.ndarray]  # seed, epoch, sample indices int64 (B,)


@dataclass(frozen=True)
class Augment:
    """The augmentation settings; each key of `configs/augment/*.yaml` is one of these.

    Attributes:
        crop_padding_px: zero padding on each side before a random crop back to the old size; 0 is no crop.
        flip_probability: chance of a left-right mirror image, in [0, 1].
        random_resized_crop_scale: smallest and largest share of the picture's area that a random crop keeps, in
            (0, 1]; the crop is scaled to the size of evaluation. None resizes as evaluation does.
    """

    crop_padding_px: int = 0
    flip_probability: float = 0.0
    random_resized_crop_scale: Sequence[float] | None = None

    def __post_init__(self) -> None:
        scale = self.random_resized_crop_scale
        if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
            raise ConfigError(
                f"augment.random_resized_crop_scale={list(scale)} must be two shares of the area between 0 and 1, the "
                "smaller one first, e.g. [0.35,1.0]; null is no such crop."
            )


@dataclass(frozen=True)
class Draws:
    """The random choices for a batch: int64 (B,) offsets in [0, 2 * padding] and bool (B,) flips."""

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray


def draw(augment: Augment, seed: int, epoch: int, indices: np.ndarray) -> Draws:
    """Draw crop offsets and flips for the samples `indices`, shape (B,)."""
    offsets = 2 * augment.crop_padding_px + 1
    threshold = round(augment.flip_probability * 2**31)
    return Draws(
        top=keyed_integers(0, offsets, seed, epoch, indices, _TOP),
        left=keyed_integers(0, offsets, seed, epoch, indices, _LEFT),
        flip=keyed_integers(0, 2**31, seed, epoch, indices, _FLIP) < threshold,
    )


def pad(images: np.ndarray, padding_px: int) -> np.ndarray:
    """Surround pictures (N, C, H, W) by zeros, once per run: crops are then plain copies. Always a new array."""
    return np.pad(images, ((0, 0), (0, 0), (padding_px, padding_px), (padding_px, padding_px)))


def gather_crop_flip(padded: np.ndarray, rows: np.ndarray, draws: Draws, padding_px: int) -> np.ndarray:
    """Copy the pictures `rows` out of a padded array, each with its own crop, then mirror those that drew a flip.

    A picture row counts as one element of W bytes, so a crop of the whole batch is a single fancy index that copies
    row by row: as fast as gathering the pictures without any crop.

    Args:
        padded: uint8 (N, C, H + 2p, W + 2p), C-contiguous.
        rows: int64 (B,), which pictures.
        draws: offsets in [0, 2p] and flips, each (B,).
        padding_px: p.

    Returns:
        uint8 (B, C, H, W).
    """
    _, channels, padded_height, padded_width = padded.shape
    height, width = padded_height - 2 * padding_px, padded_width - 2 * padding_px
    picture_stride, channel_stride, row_stride, pixel_stride = padded.strides
    windows = np.ndarray(
        shape=(len(padded), channels, padded_height, 2 * padding_px + 1),
        dtype=np.dtype((np.void, width)),
        buffer=padded,
        strides=(picture_stride, channel_stride, row_stride, pixel_stride),
    )
    lines = draws.top[:, None, None] + np.arange(height)
    copied = windows[rows[:, None, None], np.arange(channels)[:, None], lines, draws.left[:, None, None]]
    images = copied.view(np.uint8).reshape(len(rows), channels, height, width)
    images[draws.flip] = images[draws.flip, ..., ::-1]
    return images


def crop_and_flip(images: np.ndarray, augment: Augment, key: SampleKey) -> np.ndarray:
    """Apply the crop and flip of `augment` to a batch that was put together just now.

    Args:
        images: uint8 (B, C, H, W).
        augment: the settings.
        key: of the B samples.

    Returns:
        uint8 (B, C, H, W).
    """
    padded = pad(images, augment.crop_padding_px)
    return gather_crop_flip(padded, np.arange(len(images)), draw(augment, *key), augment.crop_padding_px)


def random_resized_crops(
    pictures: Iterable[np.ndarray], size: int, augment: Augment, key: SampleKey
) -> Iterator[np.ndarray]:
    """Cut a random part out of each picture and scale it to a square.

    Args:
        pictures: B pictures uint8 (H, W, 3), of any sizes.
        size: side of the squares, in pixels.
        augment: with `random_resized_crop_scale`.
        key: of the B samples.

    Yields:
        uint8 (size, size, 3).

    Source: Szegedy et al. 2015, section 6 (arXiv:1409.4842), in the form of torchvision's RandomResizedCrop.
    """
    assert augment.random_resized_crop_scale is not None, "the caller asks for it only where it is set"
    for pixels, uniforms in zip(pictures, _uniforms(*key), strict=True):
        height, width = pixels.shape[:2]
        box = crop_box(height, width, augment.random_resized_crop_scale, uniforms)
        # reducing_gap averages whole blocks first where a large photo shrinks a lot: several times faster, and alike.
        resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        yield np.asarray(resized)


def crop_box(height: int, width: int, scale: Sequence[float], uniforms: np.ndarray) -> tuple[int, int, int, int]:
    """Choose a part of a picture.

    Args:
        height: of the picture, in pixels.
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


def _uniforms(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Draw numbers in [0, 1) for the crops of a batch: float64 (B, attempts, 4)."""
    attempt, number = np.arange(_ATTEMPTS)[:, None], np.arange(4)
    bits = keyed_bits(seed, epoch, indices[:, None, None], _RESIZED_CROP, attempt, number)
    return (bits >> np.uint64(11)) * 2.0**-53  # the 53 bits that a float64 holds
