"""uint8 pixels to what a network eats: the one normalisation, shared by the loaders and `Classifier`."""

import torch
from torch import Tensor, nn

from imago.images import Preprocess


class Normalise(nn.Module):
    """Scale uint8 pictures (N, 3, H, W) to float32 with the mean and std of `preprocess`, in channels_last order."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        # In units of 0..255, so that the pixels need no division of their own. Not saved: the record is.
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(
                name, torch.tensor(values, dtype=torch.float32).mul_(255).view(1, 3, 1, 1), persistent=False
            )

    def forward(self, images: Tensor) -> Tensor:
        """Give float32 (N, 3, H, W); channels_last memory is what convolutions are fastest on."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return (floats - self.mean) / self.std
