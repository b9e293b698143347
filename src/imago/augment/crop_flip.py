"""Crops and flips of training images, one independent draw per sample, keyed by (seed, epoch, sample index).

Pure functions over whole batches; validation and test never come here.
"""

from dataclasses import dataclass

import numpy as np

from imago.augment.settings import Augment
from imago.seeding import random_integers

# Tells the draws of one sample apart, so that adding an augmentation leaves the others as they were.
_TOP, _LEFT, _FLIP, _VERTICAL_FLIP = 1, 2, 3, 5  # 4: `resized_crop`
_CERTAIN = 2**31  # chances are numbers below it

# Seed, epoch and sample indices int64 (B,); the epoch is one number, or int64 (B,) where an epoch repeats a sample.
SampleKey = tuple[int, int | np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Draws:
    """The random choices for a batch: int64 (B,) offsets in [0, 2 * padding] and bool (B,) flips; None is no flip."""

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray
    vertical_flip: np.ndarray | None = None


def draw(augment: Augment, seed: int, epoch: int | np.ndarray, indices: np.ndarray) -> Draws:
    """Draw crop offsets and flips for the samples `indices`, shape (B,)."""
    offsets = 2 * augment.crop_padding_px + 1
    key, probability = (seed, epoch, indices), augment.vertical_flip_probability
    # All at once: for a small batch the number of calls is what costs.
    spans, purposes = np.array([[offsets], [offsets], [_CERTAIN]]), np.array([[_TOP], [_LEFT], [_FLIP]])
    top, left, chance = random_integers(0, spans, *key, purposes)
    return Draws(
        top=top,
        left=left,
        flip=chance < round(augment.flip_probability * _CERTAIN),
        vertical_flip=_chosen(probability, *key, _VERTICAL_FLIP) if probability else None,
    )


def pad(images: np.ndarray, padding_px: int) -> np.ndarray:
    """Surround images (N, C, H, W) by zeros, once per run: crops are then plain copies. Always a new array."""
    return np.pad(images, ((0, 0), (0, 0), (padding_px, padding_px), (padding_px, padding_px)))


def gather_crop_flip(padded: np.ndarray, rows: np.ndarray, draws: Draws, padding_px: int) -> np.ndarray:
    """Copy the images `rows` out of a padded array, each with its own crop, then mirror those that drew a flip.

    A crop is taken as one element of all bytes between its first and last, so those of a whole batch are a single fancy
    index; the gaps go in a second copy, row by row. Together they cost less than torch's gather without any crop.

    Args:
        padded: uint8 (N, C, H + 2p, W + 2p), C-contiguous.
        rows: int64 (B,), which images.
        draws: offsets in [0, 2p] and flips, each (B,).
        padding_px: p.

    Returns:
        uint8 (B, C, H, W).
    """
    _, channels, padded_height, padded_width = padded.shape
    height, width = padded_height - 2 * padding_px, padded_width - 2 * padding_px
    image_stride, channel_stride, row_stride, pixel_stride = padded.strides
    # From the first to the last byte of a crop, with the gaps between its rows and channels.
    strip = np.dtype((np.void, (channels - 1) * channel_stride + (height - 1) * row_stride + width))
    last_start = 2 * padding_px * (row_stride + pixel_stride)
    strips = np.ndarray((len(padded), last_start + 1), strip, buffer=padded, strides=(image_stride, pixel_stride))
    copied = strips[rows, draws.top * row_stride + draws.left]
    lines = np.ndarray(
        shape=(len(rows), channels, height),
        dtype=np.dtype((np.void, width)),
        buffer=copied,
        strides=(strip.itemsize, channel_stride, row_stride),
    )
    images = np.ascontiguousarray(lines).view(np.uint8).reshape(len(rows), channels, height, width)
    _mirror(images, draws.flip, axis=3)
    if draws.vertical_flip is not None:
        _mirror(images, draws.vertical_flip, axis=2)
    return images


def _mirror(images: np.ndarray, is_chosen: np.ndarray, axis: int) -> None:
    """Turn the chosen images (B, C, H, W) round, in place."""
    import torch  # mirrors several times faster than numpy; the rest of this file works without it

    places = np.flatnonzero(is_chosen)
    images[places] = torch.from_numpy(images[places]).flip(axis).numpy()


def crop_and_flip(images: np.ndarray, augment: Augment, key: SampleKey) -> np.ndarray:
    """Apply the crop and flips of `augment` to a batch that was put together just now.

    Args:
        images: uint8 (B, C, H, W); the flips are done in place.
        augment: the settings.
        key: of the B samples.

    Returns:
        uint8 (B, C, H, W).
    """
    draws = draw(augment, *key)
    if augment.crop_padding_px:
        padded = pad(images, augment.crop_padding_px)
        return gather_crop_flip(padded, np.arange(len(images)), draws, augment.crop_padding_px)
    import torch  # mirrors several times faster than numpy; the rest of this file works without it

    batch = torch.from_numpy(images)
    for place in np.flatnonzero(draws.flip):
        batch[place] = batch[place].flip(-1)
    if draws.vertical_flip is not None:
        for place in np.flatnonzero(draws.vertical_flip):
            batch[place] = batch[place].flip(-2)
    return images


def _chosen(probability: float, *key: int | np.ndarray) -> np.ndarray:
    """Draw yes or no for each key, with that chance of yes: bool (B,)."""
    return random_integers(0, _CERTAIN, *key) < round(probability * _CERTAIN)
