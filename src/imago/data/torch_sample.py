"""Read one sample of a `torch.utils.data.Dataset`, and check that it is an image with a label."""

import operator
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from imago.augment.own_transforms import describe
from imago.errors import DataError
from imago.images import to_pixels
from imago.seeding import seeded

_WANTED = "(image, label): a PIL image or uint8 tensor (3, H, W) or (1, H, W), and a whole number from 0"


def read_sample(source: Any, index: int, split: str, key: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, int]:
    """Read one sample, with the generators of torch, numpy and random seeded by (seed, epoch, index).

    Args:
        source: a Dataset of (image, label).
        index: of the sample in `source`.
        split: the setting of `source` below `data`, for messages.
        key: seed and epoch.

    Returns:
        The image, uint8 (H, W, 3), and the label.

    Raises:
        DataError: if its file cannot be read, or it is something else; names class, index, what it is and is not.
    """
    where = f"data.{split}, {type(source).__name__}: sample {index}"
    try:
        with seeded(*key, index):
            sample = source[index]
        is_pair = isinstance(sample, (tuple, list)) and len(sample) == 2
        pixels = _pixels(sample[0], where) if is_pair else None  # Pillow may decode only here
    except OSError as error:  # Pillow's UnidentifiedImageError is one
        raise DataError(f"{where} cannot be read: {error}; repair the file or leave it out.") from error
    label = _label(sample[1]) if is_pair else None
    if pixels is not None and label is not None:
        return pixels, label
    hint = "; leave ToTensor and Normalize out" if "float" in describe(sample) else ""
    raise DataError(f"{where} is {describe(sample)}, wanted {_WANTED}{hint}.")


def _pixels(image: Any, name: str) -> np.ndarray | None:
    """Return an image as uint8 (H, W, 3); None if it is no image."""
    if isinstance(image, Image.Image):
        return to_pixels(image, name)
    if isinstance(image, Tensor) and image.ndim == 3:
        image = image.permute(1, 2, 0).numpy(force=True)
    elif isinstance(image, np.ndarray) and image.ndim == 2:
        image = image[..., None]
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.uint8 or not image.size:
        return None
    if image.shape[2] not in (1, 3):
        return None
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _label(label: Any) -> int | None:
    """Return a label as int; None if it is no whole number from 0."""
    try:
        number = operator.index(label)  # of int, numpy integers, and integer tensors of one element
    except (TypeError, ValueError):
        return None
    return number if number >= 0 else None
