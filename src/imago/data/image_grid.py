"""Undo the normalization of image batches and lay them out as one grid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GAP_PX = 2
_WHITE = 255


def restore_colors(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalization.

    Args:
        images: normalized images (N, 3, H, W), on any device and of any floating-point type.
        mean: per channel, of pixels in [0, 1].
        std: per channel, likewise.

    Returns:
        uint8 (N, 3, H, W) on the CPU; values outside [0, 255] are clipped.
    """
    scale, shift = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (std, mean))
    return ((images.float().cpu() * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)


def lay_out(images: Tensor, columns: int) -> Tensor:
    """Lay out images, uint8 (N, 3, H, W) with N at least 1, row by row with white gaps; return (3, height, width)."""
    height, width = images.shape[-2:]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_height, cell_width = height + GAP_PX, width + GAP_PX
    grid = torch.full((3, rows * cell_height + GAP_PX, columns * cell_width + GAP_PX), _WHITE, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * cell_height + GAP_PX, (index % columns) * cell_width + GAP_PX
        grid[:, top : top + height, left : left + width] = image
    return grid
