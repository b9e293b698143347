"""Crop and flip training images at random; the result depends on (seed, epoch, sample index) only.

Legend: N stored images, B samples of a batch, C channels, H and W pixels, p the padding in pixels.
"""

from dataclasses import dataclass

import numpy as np

from imago.augment.settings import Augment
from imago.seeding import random_integers

# Last part of a key, so that augmentations are sampled independently. `resized_crop` has 4.
_TOP_KEY, _LEFT_KEY, _FLIP_KEY, _VERTICAL_FLIP_KEY = 1, 2, 3, 5
# An image is flipped if its random integer is below probability * this; fits the 32-bit span of `random_integers`.
_PROBABILITY_SCALE = 2**31
# Up to this size, 73 x 73 px, images are flipped by one advanced index per batch; larger ones one by one, which saves a
# copy; our own choice.
_MAX_FLIP_AT_ONCE_BYTES = 2**14

# Seed, epoch and sample indices int64 (B,); the epoch is one number, or int64 (B,) where an epoch repeats a sample.
SampleKey = tuple[int, int | np.ndarray, np.ndarray]


@dataclass(frozen=True)
class CropFlipParams:
    """The random choices for a batch: int64 (B,) offsets in [0, 2p] and bool (B,) flips; None is no flip."""

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray
    vertical_flip: np.ndarray | None = None


def sample_crop_flip(augment: Augment, seed: int, epoch: int | np.ndarray, indices: np.ndarray) -> CropFlipParams:
    """Sample crop offsets and flips for the images at `indices`, shape (B,)."""
    offsets, key = 2 * augment.crop_padding_px + 1, (seed, epoch, indices)
    # One call for all three: in a small batch the overhead of the calls dominates.
    spans = np.array([[offsets], [offsets], [_PROBABILITY_SCALE]])
    purposes = np.array([[_TOP_KEY], [_LEFT_KEY], [_FLIP_KEY]])
    top, left, flip_value = random_integers(0, spans, *key, purposes)
    vertical_flip = None
    if augment.vertical_flip_probability:
        vertical_flip_value = random_integers(0, _PROBABILITY_SCALE, *key, _VERTICAL_FLIP_KEY)
        vertical_flip = vertical_flip_value < round(augment.vertical_flip_probability * _PROBABILITY_SCALE)
    limit = round(augment.flip_probability * _PROBABILITY_SCALE)
    flip = flip_value < limit
    if augment.alternate_flip and limit:
        is_odd = np.asarray(epoch) % 2 == 1
        flip = (random_integers(0, _PROBABILITY_SCALE, seed, 0, indices, _FLIP_KEY) < limit) ^ is_odd
    return CropFlipParams(top, left, flip, vertical_flip)


def pad(images: np.ndarray, padding_px: int, mode: str = "zeros") -> np.ndarray:
    """Return a copy of images (N, C, H, W) with `padding_px` zeros on each side, or with their reflection."""
    widths = ((0, 0), (0, 0), (padding_px, padding_px), (padding_px, padding_px))
    return np.pad(images, widths, mode="constant" if mode == "zeros" else "reflect")


def gather_crop_flip(padded: np.ndarray, indices: np.ndarray, params: CropFlipParams, padding_px: int) -> np.ndarray:
    """Copy the images at `indices` out of a padded array, each with its own crop, and flip those that `params` selects.

    Each crop is copied as one element from its first to its last byte, so that one advanced index copies a whole
    batch; a second copy, row by row, removes the gaps. Both together take less time than torch's gather alone.

    `padded` is uint8 (N, C, H + 2p, W + 2p), C-contiguous, and `indices` int64 (B,); return uint8 (B, C, H, W).
    """
    _, channels, padded_height, padded_width = padded.shape
    height, width = padded_height - 2 * padding_px, padded_width - 2 * padding_px
    image_stride, channel_stride, row_stride, pixel_stride = padded.strides
    # One element: from the first to the last byte of a crop, with the gaps between its rows and channels.
    crop_dtype = np.dtype((np.void, (channels - 1) * channel_stride + (height - 1) * row_stride + width))
    last_start = 2 * padding_px * (row_stride + pixel_stride)
    crops = np.ndarray((len(padded), last_start + 1), crop_dtype, buffer=padded, strides=(image_stride, pixel_stride))
    copied = crops[indices, params.top * row_stride + params.left]
    shape, strides = (len(indices), channels, height), (crop_dtype.itemsize, channel_stride, row_stride)
    rows = np.ndarray(shape, np.dtype((np.void, width)), buffer=copied, strides=strides)
    return _flip(np.ascontiguousarray(rows).view(np.uint8).reshape(*shape, width), params)


def crop_and_flip(images: np.ndarray, augment: Augment, key: SampleKey) -> np.ndarray:
    """Apply the crop and flips of `augment` to images uint8 (B, C, H, W), which may be changed in place."""
    params = sample_crop_flip(augment, *key)
    if not augment.crop_padding_px:
        return _flip(images, params)
    padded = pad(images, augment.crop_padding_px, augment.crop_padding_mode)
    return gather_crop_flip(padded, np.arange(len(images)), params, augment.crop_padding_px)


def _flip(images: np.ndarray, params: CropFlipParams) -> np.ndarray:
    """Flip the images that `params` selects, left-right and then top-bottom, in place."""
    import torch  # flips several times faster than numpy; nothing else in this module needs it

    batch = torch.from_numpy(images)
    for is_flipped, axis in ((params.flip, 3), (params.vertical_flip, 2)):
        flipped = np.flatnonzero(is_flipped) if is_flipped is not None else np.empty(0, np.int64)
        if len(flipped) and images[0].nbytes <= _MAX_FLIP_AT_ONCE_BYTES:
            images[flipped] = torch.from_numpy(images[flipped]).flip(axis).numpy()
        else:
            for index in flipped.tolist():
                batch[index] = batch[index].flip(axis - 1)
    return images
