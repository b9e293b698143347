"""What training does to pictures, one independent draw per sample, keyed by (seed, epoch, sample index).

Pure functions over whole batches; validation and test never come here.
"""

from dataclasses import dataclass

import numpy as np

from imago.data.keyed import keyed_integers

# Tells the draws of one sample apart, so that adding an augmentation leaves the others as they were.
_TOP, _LEFT, _FLIP = 1, 2, 3


@dataclass(frozen=True)
class Augment:
    """The augmentation settings; each key of `configs/augment/*.yaml` is one of these.

    Attributes:
        crop_padding_px: zero padding on each side before a random crop back to the old size; 0 is no crop.
        flip_probability: chance of a left-right mirror image, in [0, 1].
    """

    crop_padding_px: int = 0
    flip_probability: float = 0.0


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
