"""Fit the first convolution of a network to small or gray images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imago.images import MAX_SMALL_PX

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, section 2.5.1


def fit_stem(network: nn.Module, image_size: int) -> list[str]:
    """Make the first convolution of a network, in place, keep the resolution of images of up to `MAX_SMALL_PX`.

    A convolution wider than 3x3 is replaced by a new 3x3 one with stride 1; a 3x3 one keeps its weights and gets stride
    1. In ResNets the max-pool after it is removed too. Patch embeddings (kernel as wide as the stride, as in ViT, Swin
    and ConvNeXt) are kept: the rest of the network is built for them.

    Returns:
        Names of the modules whose weights are new; for larger images nothing is changed.

    Source: He et al. 2016, section 4.2 (arXiv:1512.03385), whose CIFAR-10 nets start with a 3x3 convolution of stride 1
    and have no max-pool.
    """
    name, stem = _find_stem(network)
    if image_size > MAX_SMALL_PX or stem is None or stem.kernel_size == stem.stride:
        return []
    if type(network).__name__ == "ResNet":  # torchvision's and timm's
        network.maxpool = nn.Identity()
    if max(stem.kernel_size) <= 3:
        stem.stride = (1, 1)
        return []
    new_stem = nn.Conv2d(stem.in_channels, stem.out_channels, 3, stride=1, padding=1, bias=stem.bias is not None)
    # As torchvision initializes its ResNets.
    nn.init.kaiming_normal_(new_stem.weight, mode="fan_out", nonlinearity="relu")
    if new_stem.bias is not None:
        nn.init.zeros_(new_stem.bias)
    network.set_submodule(name, new_stem)
    return [name]


def convert_to_gray(net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a network use only the luminance of images: all three channels of its input are replaced by it.

    The luminance is that of the pixels, and each channel is normalized by its own mean and std again. So on a gray
    image the output is the same as before, up to the border, where a convolution adds zeros. With one channel it could
    not be: a zero stands for another gray in each channel. `mean` and `std` are those of the input, per channel. The
    network gets a hook and buffers that are not saved; its weights do not change.
    """
    weights, means, stds = (
        torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (_LUMINANCE, mean, std)
    )
    # The luminance minus its mean is the sum of `gray_weights` times the input; `gray_shift` is the mean minus that of
    # each channel.
    net.register_buffer("gray_weights", weights * stds, persistent=False)
    net.register_buffer("gray_shift", (weights * means).sum() - means, persistent=False)
    net.register_buffer("gray_std", stds, persistent=False)
    net.register_forward_pre_hook(_replace_by_luminance)


def _replace_by_luminance(net: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Return normalized RGB images (N, 3, H, W) with the luminance in each channel, as `convert_to_gray` says."""
    images = inputs[0]
    deviation = (images * net.gray_weights).sum(dim=1, keepdim=True)
    memory_format = torch.contiguous_format if images.is_contiguous() else torch.channels_last
    return (((deviation + net.gray_shift) / net.gray_std).contiguous(memory_format=memory_format),)


def luminance(images: Tensor) -> Tensor:
    """Convert normalized RGB images (N, 3, H, W) to gray ones (N, 1, H, W); equal channels keep their value."""
    red, green, blue = _LUMINANCE
    return red * images[:, 0:1] + green * images[:, 1:2] + blue * images[:, 2:3]


def _find_stem(network: nn.Module) -> tuple[str, Any]:
    """Return the name of the first convolution over three colors, and the convolution; ("", None) if there is none."""
    convolutions = ((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    return next(((name, part) for name, part in convolutions if part.in_channels == 3), ("", None))
