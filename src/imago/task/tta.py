"""Test-time augmentation: average the probabilities of several views of an image."""

from collections.abc import Callable

import torch
from torch import Tensor

# Shifts (down, right) in px, and their weights. Source: airbench94 (Jordan 2024, section 3.5, arXiv:2404.00498).
_SHIFTS = {"flip": (((0, 0), 1.0),), "flip_shift": (((0, 0), 0.5), ((-1, -1), 0.25), ((1, 1), 0.25))}


def predict_with_tta(net: Callable[[Tensor], Tensor], images: Tensor, tta: str) -> Tensor:
    """Return logits of the mean probabilities over the views of images (N, 3, H, W), of any type that `net` takes.

    "none" calls `net` once; "flip" adds the mirrored image; "flip_shift" also shifts both by a pixel along a diagonal,
    six views in all.

    Returns:
        (N, K): the logits of `net` with "none", else the logarithms of the mean probabilities.
    """
    if tta == "none":
        return net(images)
    mean = torch.zeros((), device=images.device)
    for (down_px, right_px), weight in _SHIFTS[tta]:
        view = shift(images, down_px, right_px)
        for image in (view, view.flip(-1)):
            mean = mean + weight / 2 * net(image).float().softmax(dim=1)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()  # a probability of 0 has no logarithm


def shift(images: Tensor, down_px: int, right_px: int) -> Tensor:
    """Shift images (N, 3, H, W) and fill the gap with the pixels of the edge."""
    for dim, distance_px in ((-2, down_px), (-1, right_px)):
        if distance_px:
            indices = torch.arange(images.shape[dim], device=images.device) - distance_px
            images = images.index_select(dim, indices.clamp(0, images.shape[dim] - 1))
    return images
