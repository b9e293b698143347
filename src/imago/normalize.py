"""Normalize image batches, in one implementation for loaders, networks and exported models, and undo it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imago.images import Preprocess


class Normalize(nn.Module):
    """Normalize images (N, 3, H, W), with values in 0..255, by the mean and std of `preprocess`, to float32.

    Attributes:
        memory_format: of the images that are returned; convolutions are fastest in channels_last.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.memory_format = torch.channels_last
        # Multiplied by 255, so that pixels need not be divided by 255. Not persistent: `preprocess` is saved.
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            buffer = torch.tensor(values, dtype=torch.float32).mul_(255).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 (N, 3, H, W)."""
        # The conversion comes last: per-channel arithmetic is several times slower in channels_last.
        return (images.float() - self.mean).div_(self.std).contiguous(memory_format=self.memory_format)


def restore_colors(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalization of images (N, 3, H, W), on any device and of any floating-point type.

    `mean` and `std` are per channel, of pixels in [0, 1]. Return uint8 (N, 3, H, W) on the CPU; values outside [0, 255]
    are clipped.
    """
    scale, shift = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (std, mean))
    return ((images.float().cpu() * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)
