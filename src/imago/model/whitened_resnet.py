"""WhitenedResNet: a residual network that trains fast on a CPU, with a whitening first layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.model.stem import luminance

_PATCH_PX = 2  # side of the patches that the first layer whitens, as in airbench94
_WHITENING_EPS = 5e-4  # added to the variances, so that directions of noise are not amplified; as in airbench94
# Weight of the newest batch in BatchNorm's statistics: torch's 0.1 is slow for a short run. 1 - 0.6 of airbench94.
_NORM_MOMENTUM = 0.4


class WhitenedResNet(nn.Module):
    """Whitening 2x2 convolution, a residual block for each width, global maximum, head.

    Every block halves the resolution. Source of all but the residual sums: airbench94 (Jordan 2024,
    arXiv:2404.00498), narrower here.

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record.
        widths: channels of each block.
        logit_scale: factor on the logits, so that the first ones are small although the head's weights are not.
        in_channels: 3, or 1 to use the luminance of the images, with a third as many filters in the first layer.
        residual: False leaves out the residual sums, as in airbench94.

    Raises:
        ConfigError: if the images are too small for that many blocks.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        widths: Sequence[int],
        logit_scale: float,
        in_channels: int = 3,
        residual: bool = True,
    ) -> None:
        super().__init__()
        smallest_px = 2 ** len(widths) + _PATCH_PX - 1
        if image_size < smallest_px:
            raise ConfigError(
                f"model.widths={list(widths)} halves images {len(widths)} times, which needs {smallest_px} px, and "
                f"they have {image_size}; type fewer widths or preprocess.size={smallest_px}."
            )
        self.whitening = nn.Conv2d(in_channels, 2 * in_channels * _PATCH_PX**2, _PATCH_PX)
        self.whitening.weight.requires_grad_(False)
        widths_in = [self.whitening.out_channels, *widths]
        self.blocks = nn.Sequential(nn.GELU(), *map(ResidualBlock, widths_in, widths, [residual] * len(widths)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.logit_scale = logit_scale
        nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]  # there is one
        nn.init.normal_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, H, W) to logits (N, K); also of other sizes than `image_size`."""
        features = self.blocks(self.whitening(self._channels(images))).amax(dim=(2, 3))
        return self.head(features) * self.logit_scale

    @torch.no_grad()
    def initialize_from(self, images: Tensor) -> None:
        """Set the first layer, which is not trained, so that its channels are uncorrelated and have variance 1.

        The filters are the principal directions of the patches divided by their standard deviations, each with both
        signs. They are saved in the checkpoint like all weights. Source: Jordan 2024, section 3.2 (arXiv:2404.00498).
        The images (N, 3, H, W) are normalized training images; some hundred are enough.
        """
        columns = nn.functional.unfold(self._channels(images.float()), _PATCH_PX)  # (N, in_channels * 4, H * W)
        patches = columns.transpose(1, 2).flatten(0, 1)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + _WHITENING_EPS).sqrt()).T
        filters = filters.reshape(-1, *self.whitening.weight.shape[1:])
        self.whitening.weight.copy_(torch.cat([filters, -filters]))

    def _channels(self, images: Tensor) -> Tensor:
        return images if self.whitening.in_channels == 3 else luminance(images)


class ResidualBlock(nn.Module):
    """x + layer(x), where x = layer(input) has half the resolution; a layer is convolution, BatchNorm and GELU.

    Without `residual`, layer(x).
    """

    def __init__(self, in_width: int, width: int, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.down = nn.Sequential(_convolution(in_width, width), nn.MaxPool2d(2), _norm(width), nn.GELU())
        self.layer = nn.Sequential(_convolution(width, width), _norm(width), nn.GELU())

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, in_width, H, W) to (N, width, H // 2, W // 2)."""
        halved = self.down(features)
        return halved + self.layer(halved) if self.residual else self.layer(halved)


def _convolution(in_width: int, width: int) -> nn.Conv2d:
    """Build a 3x3 convolution whose first filters are the identity and the others random."""
    convolution = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:in_width])
    return convolution


def _norm(width: int) -> nn.BatchNorm2d:
    """Build a BatchNorm whose scale stays 1: the layers after it can learn the scale."""
    norm = nn.BatchNorm2d(width, momentum=_NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm
