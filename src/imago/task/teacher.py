"""A trained network that teaches another one: it sees the same images, prepared as it learnt them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Teacher(nn.Module):
    """Takes the student's normalized images; undoes the student's mean and std and applies its own.

    It looks at what the student looks at, after augmentation (Beyer et al. 2022, section 3.1, arXiv:2106.05237): only
    the scale of the pixels and the size of the image become its own, not its cut.

    Args:
        net: maps images (N, 3, S, S), normalized by its own record, to logits (N, K).
        preprocess: its own record, as `imago.images.Preprocess.to_dict` gives it.
        student: the record of the student.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, preprocess: Mapping[str, Any], student: Mapping[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.size_px = int(preprocess["size"])
        mean, std, student_mean, student_std = (
            torch.tensor(record[name], dtype=torch.float32).view(1, 3, 1, 1)
            for record in (preprocess, student)
            for name in ("mean", "std")
        )
        self.register_buffer("scale", student_std / std)
        self.register_buffer("shift", (student_mean - mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        """Map the student's images (N, 3, H, W) to logits (N, K)."""
        if images.shape[-1] != self.size_px:
            size = (self.size_px, self.size_px)
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        return self.net(images * self.scale + self.shift)
