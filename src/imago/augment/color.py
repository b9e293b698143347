"""Colors of a batch of images, a factor for each: the maths of torchvision's adjust_brightness and the like.

Samples are float (N, 3, H, W) in [0, 255] and stay in that range. They are changed in place and given back: a new
array for every step would cost more than the arithmetic. Factors are (N, 1, 1, 1).
"""

import torch
from torch import Tensor

MAX_VALUE = 255.0
_GREY_SHARES = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as rounded by torchvision


def change_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply pixels; 0 is black."""
    return images.mul_(factors).clamp_(0.0, MAX_VALUE)


def change_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance of pixels to their image's mean gray; 0 is that gray."""
    gray = _gray(images.mean(dim=(2, 3), keepdim=True))
    return images.mul_(factors).add_(gray * (1 - factors)).clamp_(0.0, MAX_VALUE)


def change_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance of pixels to their own gray; 0 is a gray image."""
    gray = _gray(images).mul_(1 - factors)
    return images.mul_(factors).add_(gray).clamp_(0.0, MAX_VALUE)


def change_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the color wheel.

    Args:
        images: as above.
        turns: how far, (N, 1, 1, 1), in [-0.5, 0.5] of a whole turn.

    Source: the hexagon model of Smith 1978 (doi:10.1145/965139.807361), which torchvision and Pillow compute as well.
    """
    red, green, blue = images.split(1, dim=1)
    largest = images.amax(dim=1, keepdim=True)
    spread = largest - images.amin(dim=1, keepdim=True)
    # In sixths of the wheel; a gray pixel has no hue, and any number will do.
    from_green, from_blue = (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4)
    hue = torch.where(largest == green, from_green, from_blue)
    hue = torch.where(largest == red, green - blue, hue).div_(spread.clamp(min=1e-6)).div_(6).add_(turns)
    for channel, opposite in zip((red, green, blue), (1 / 2, 5 / 6, 1 / 6), strict=True):
        # A channel has its smallest value at the opposite hue and a sixth around it, its largest from a third on.
        distance = hue - opposite
        distance.sub_(distance.round()).abs_()
        channel.copy_(largest).sub_(distance.mul_(-6).add_(2).clamp_(0.0, 1.0).mul_(spread))
    return images


def _gray(images: Tensor) -> Tensor:
    """Give the gray (N, 1, H, W) of each pixel; a new array."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(_GREY_SHARES[0]).add_(green, alpha=_GREY_SHARES[1]).add_(blue, alpha=_GREY_SHARES[2])
