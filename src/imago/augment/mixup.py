"""MixUp and CutMix: mix each image of a batch, and its target, with another one.

Random values are arguments, drawn by numpy on the CPU and copied to the device of the images without a synchronization:
    images: float (B, 3, H, W): B samples of a batch, H and W pixels.
    targets: probabilities of the K classes, float32 (B, K).
    lam: weight of each sample in the blend, in [0, 1], float64 (B,).
    boxes: top, bottom, left and right of the rectangles, inside the image, int64 (4, B).
    order: indices of the other samples, int64 (B,).
"""

import numpy as np
import torch
from torch import Tensor

from imago.augment.random_erasing import box_mask, to_device_of


def mixup(images: Tensor, targets: Tensor, lam: np.ndarray, order: np.ndarray) -> tuple[Tensor, Tensor]:
    """Blend each sample with another sample of the batch: `lam * x + (1 - lam) * x[order]`, also of the targets.

    Source: Zhang et al. 2018 (arXiv:1710.09412).
    """
    return _blend(images, targets, _per_image(images, lam), lam, order)


def cutmix(images: Tensor, targets: Tensor, boxes: np.ndarray, order: np.ndarray) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each sample by the same rectangle of another sample of the batch.

    A target keeps the share of the area that its image keeps.

    Source: Yun et al. 2019 (arXiv:1905.04899).
    """
    return _blend(images, targets, ~box_mask(images, boxes), _share_outside(boxes, images), order)


def mixup_or_cutmix(
    images: Tensor, targets: Tensor, is_mixup: np.ndarray, lam: np.ndarray, boxes: np.ndarray, order: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Apply `mixup` to the samples where `is_mixup`, bool (B,), is True, and `cutmix` to the others."""
    outside = (~box_mask(images, boxes)).float()
    weights = torch.where(_per_image(images, is_mixup).bool(), _per_image(images, lam), outside)
    return _blend(images, targets, weights, np.where(is_mixup, lam, _share_outside(boxes, images)), order)


def cutmix_boxes(lam: np.ndarray, rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> np.ndarray:
    """Compute rectangles with the aspect ratio of the images around the pixels at `rows` and `columns`, int64 (B,).

    `lam` is the share of the area outside of a rectangle before it is clipped at the edges of the image.

    Source: Yun et al. 2019, section 3.1.
    """
    sides = np.sqrt(1 - lam) / 2
    half_heights, half_widths = (sides * height).astype(np.int64), (sides * width).astype(np.int64)
    tops, bottoms = (rows - half_heights).clip(0), (rows + half_heights).clip(max=height)
    lefts, rights = (columns - half_widths).clip(0), (columns + half_widths).clip(max=width)
    return np.stack([tops, bottoms, lefts, rights])


def _blend(
    images: Tensor, targets: Tensor, weights: Tensor, lam: np.ndarray, order: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Weight the pixels of each sample by `weights`, which broadcast to (B, 1, H, W), and its target by `lam`, (B,)."""
    other = to_device_of(images, order)
    share = to_device_of(targets, lam.astype(np.float32))[:, None]
    return torch.lerp(images[other], images, weights.to(images.dtype)), torch.lerp(targets[other], targets, share)


def _per_image(images: Tensor, values: np.ndarray) -> Tensor:
    return to_device_of(images, values.astype(np.float32)).view(-1, 1, 1, 1)


def _share_outside(boxes: np.ndarray, images: Tensor) -> np.ndarray:
    top, bottom, left, right = boxes
    return 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
