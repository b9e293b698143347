"""Adjust the colors of a batch with one factor for each image, computed as by torchvision's adjust_brightness etc.

Images are float (N, 3, H, W) in [0, 255]; factors are (N, 1, 1, 1). Images are changed in place and returned: a new
tensor for every step would cost more than the arithmetic.
"""

import torch
from torch import Tensor

_MAX_VALUE = 255.0
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as rounded by torchvision


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply all pixels; 0 gives black."""
    return images.mul_(factors).clamp_(0.0, _MAX_VALUE)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the difference between each pixel and the mean gray of its image; 0 gives that gray."""
    gray = _gray(images.mean(dim=(2, 3), keepdim=True))
    return images.mul_(factors).add_(gray * (1 - factors)).clamp_(0.0, _MAX_VALUE)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the difference between each pixel and its own gray; 0 gives a gray image."""
    gray = _gray(images).mul_(1 - factors)
    return images.mul_(factors).add_(gray).clamp_(0.0, _MAX_VALUE)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue by `turns`, shape (N, 1, 1, 1), in [-0.5, 0.5] of the whole color wheel.

    Source: the hexagon model of Smith 1978 (doi:10.1145/965139.807361), as in torchvision and Pillow.
    """
    red, green, blue = images.split(1, dim=1)
    largest = images.amax(dim=1, keepdim=True)
    spread = largest - images.amin(dim=1, keepdim=True)
    # In sixths of the wheel; a gray pixel has no hue, and any number will do.
    from_green, from_blue = (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4)
    hue = torch.where(largest == green, from_green, from_blue)
    hue = torch.where(largest == red, green - blue, hue).div_(spread.clamp(min=1e-6)).div_(6).add_(turns)
    for channel, opposite in zip((red, green, blue), (1 / 2, 5 / 6, 1 / 6), strict=True):
        # A channel is smallest at the opposite hue and up to 1/6 from it, and largest from 1/3 on.
        distance = hue - opposite
        distance.sub_(distance.round()).abs_()
        channel.copy_(largest).sub_(distance.mul_(-6).add_(2).clamp_(0.0, 1.0).mul_(spread))
    return images


def _gray(images: Tensor) -> Tensor:
    """Return the gray value of each pixel, a new tensor (N, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(_GRAY_WEIGHTS[0]).add_(green, alpha=_GRAY_WEIGHTS[1]).add_(blue, alpha=_GRAY_WEIGHTS[2])
