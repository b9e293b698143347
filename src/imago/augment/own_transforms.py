"""Apply transforms of the user's own, with seeded draws: `augment.extra` to images, `augment.extra_batch` to batches.

Before each call the generators of torch, numpy and random are seeded by (seed, epoch, sample index) or by (seed, epoch,
batch index, rank), and restored afterwards: their results do not depend on workers or resuming.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imago.augment.crop_flip import SampleKey
from imago.errors import DataError
from imago.instantiate import accepts, build, full_name, import_target_or_none
from imago.seeding import seeded

_EXTRA_KEY, _EXTRA_BATCH_KEY = 105, 205  # second-to-last part of a key, see `sample_transforms` and `batch_augment`


def transform_samples(images: np.ndarray, transforms: Sequence[Callable], key: SampleKey) -> None:
    """Apply transforms to each image of a batch, in place.

    Args:
        images: uint8 (B, 3, H, W).
        transforms: map a contiguous uint8 tensor (3, H, W) to another one.
        key: seed, epoch and indices of the B samples.

    Raises:
        DataError: if a transform returns something else.
    """
    seed, epochs, indices = key
    for row, epoch, index in zip(images, np.broadcast_to(epochs, len(images)), indices, strict=True):
        image = torch.from_numpy(row).contiguous()
        for number, transform in enumerate(transforms):
            with seeded(seed, epoch, index, _EXTRA_KEY, number):
                result = transform(image)
            if getattr(result, "dtype", None) != torch.uint8 or result.shape != image.shape:
                got = f"{_name(transform)} returned {describe(result)}"
                raise DataError(f"augment.extra: {got}, wanted {describe(image)}.")
            image = result
        row[...] = image.numpy()


def build_batch_transform(node: Any, num_classes: int) -> Callable:
    """Build a transform of batches from a node with `_target_`; `num_classes` fills a parameter of that name."""
    if not isinstance(node, Mapping):
        return node
    takes_number = accepts(import_target_or_none(node["_target_"]), "num_classes")
    return build({"num_classes": num_classes, **node} if takes_number else node)


def transform_batch(
    images: Tensor, labels: Tensor, transforms: Sequence[Callable], key: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Apply transforms to a batch, on its device.

    Args:
        images: normalized, float (B, 3, H, W).
        labels: int64 (B,), or float (B, K) of mixed images; also those returned.
        transforms: map (images, labels) to (images, labels).
        key: seed, epoch, batch index and rank.

    Raises:
        DataError: if a transform returns something else.
    """
    for number, transform in enumerate(transforms):
        with seeded(*key, _EXTRA_BATCH_KEY, number, device_type=images.device.type):
            result = transform(images, labels)
        shapes = [getattr(item, "shape", ()) for item in result] if isinstance(result, (tuple, list)) else []
        if len(shapes) != 2 or shapes[0] != images.shape or shapes[1][:1] != images.shape[:1]:
            wanted = f"(images, labels), {describe(images)} and ({len(images)},) or ({len(images)}, K)"
            raise DataError(f"augment.extra_batch: {_name(transform)} returned {describe(result)}, wanted {wanted}.")
        images, labels = result
    return images, labels


def describe(value: Any) -> str:
    """Describe a value in a few words, for error messages: type, or dtype and shape, or the first items."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(map(describe, value[:3]))})"
    if hasattr(value, "dtype"):
        return f"{type(value).__name__} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{type(value).__name__}" + (f" {value!r}" if isinstance(value, (int, float, str)) else "")


def _name(transform: Callable) -> str:
    return full_name(transform if hasattr(transform, "__qualname__") else type(transform))
