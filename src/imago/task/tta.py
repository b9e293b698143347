"""Test-time augmentation: the mean over several views of the same image."""

from collections.abc import Callable

import torch
from torch import Tensor

# Shifts in px along y and x, and their weights: those of airbench94 (Jordan 2024, section 3.5, arXiv:2404.00498).
_SHIFTS = (((0, 0), 0.5), ((-1, -1), 0.25), ((1, 1), 0.25))


def predict_with_tta(net: Callable[[Tensor], Tensor], images: Tensor, tta: str) -> Tensor:
    """Give logits of the mean of the probabilities over the views.

    Args:
        net: maps images to logits (N, K).
        images: (N, 3, H, W), of any type that `net` takes.
        tta: "none" is `net` itself; "flip" adds the mirror image; "flip_shift" shifts both by a pixel along a diagonal,
            too, which makes six views.

    Returns:
        (N, K): where there are several views, logarithms of their mean probabilities.
    """
    if tta == "none":
        return net(images)
    shifts = {"flip": (((0, 0), 1.0),), "flip_shift": _SHIFTS}[tta]
    mean = torch.zeros((), device=images.device)
    for (down, right), weight in shifts:
        view = shift(images, down, right)
        for image in (view, view.flip(-1)):
            mean = mean + weight / 2 * net(image).float().softmax(dim=1)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()  # no logarithm of a probability that rounds to 0


def shift(images: Tensor, down_px: int, right_px: int) -> Tensor:
    """Move images (N, 3, H, W); the pixels of the edge fill the gap."""
    for dim, distance in ((-2, down_px), (-1, right_px)):
        if distance:
            places = torch.arange(images.shape[dim], device=images.device) - distance
            images = images.index_select(dim, places.clamp(0, images.shape[dim] - 1))
    return images
