"""Apply transforms of the user's own, with seeded draws: `augment.extra` to images, `augment.extra_batch` to batches.

Before each call the generators of torch, numpy and random are seeded by (seed, epoch, sample index) or by (seed, epoch,
batch index, rank), and restored afterwards: such a transform need not care about workers, ranks or resuming.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imago.augment.crop_flip import SampleKey
from imago.errors import DataError
from imago.instantiate import build
from imago.seeding import seeded

_EXTRA_KEY, _EXTRA_BATCH_KEY = 105, 205  # the last part of a key but one, see `sample_transforms` and `batch_augment`


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
            if not isinstance(result, Tensor) or result.dtype != torch.uint8 or result.shape != image.shape:
                wanted = f"a uint8 tensor {tuple(image.shape)}"
                raise DataError(f"augment.extra: {_name(transform)} returned {describe(result)}, wanted {wanted}.")
            image = result
        row[...] = image.numpy()


def build_batch_transform(node: Any, num_classes: int) -> tuple[Callable, bool]:
    """Build a transform of batches; `num_classes` fills a parameter of that name.

    Args:
        node: with `_target_`, or a callable.
        num_classes: K.

    Returns:
        The transform, and whether it gets the labels too: it requires two arguments, or takes any number.
    """
    transform = node
    if isinstance(node, Mapping):
        parameters = inspect.signature(build({**node, "_partial_": True})).parameters
        filled: dict[str, Any] = {"num_classes": num_classes} if "num_classes" in parameters else {}
        transform = build(node, **{name: value for name, value in filled.items() if name not in node})
    parameters = inspect.signature(getattr(transform, "forward", transform)).parameters
    num_required = sum(p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD for p in parameters.values())
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return transform, takes_any or num_required >= 2


def transform_batch(
    images: Tensor, labels: Tensor, transforms: Sequence[tuple[Callable, bool]], key: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Apply transforms to a batch, on its device.

    Args:
        images: normalized, float (B, 3, H, W).
        labels: int64 (B,), or float (B, K) of mixed images; those that are returned likewise.
        transforms: from `build_batch_transform`.
        key: seed, epoch, batch index and rank.

    Raises:
        DataError: if a transform returns something else.
    """
    shape = images.shape
    for number, (transform, takes_labels) in enumerate(transforms):
        with seeded(*key, _EXTRA_BATCH_KEY, number, device_type=images.device.type):
            result = transform(images, labels) if takes_labels else (transform(images), labels)
        shapes = [getattr(item, "shape", None) for item in result] if isinstance(result, (tuple, list)) else []
        if len(shapes) != 2 or shapes[0] != shape or shapes[1] is None or shapes[1][:1] != shape[:1]:
            wanted = f"(images, labels), {tuple(shape)} and ({shape[0]},) or ({shape[0]}, K)"
            raise DataError(f"augment.extra_batch: {_name(transform)} returned {describe(result)}, wanted {wanted}.")
        images, labels = result
    return images, labels


def describe(value: Any) -> str:
    """Describe a value in a few words, for error messages: type, or dtype and shape, or the first items."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(map(describe, value[:3]))})"
    if hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{type(value).__name__}" + (f" {value!r}" if isinstance(value, (int, float, str)) else "")


def _name(transform: Callable) -> str:
    named = transform if hasattr(transform, "__qualname__") else type(transform)
    return f"{named.__module__}.{named.__qualname__}"
