"""Fit the first convolution of a network to small or gray images."""

from typing import Any

from torch import Tensor, nn

from imago.errors import ConfigError
from imago.images import MAX_SMALL_PX

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601, section 2.5.1


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


def convert_to_gray(net: nn.Module) -> str:
    """Let a network use only the luminance of images; sum the first convolution's weights over red, green and blue.

    On a gray image, whose three channels are equal, the output is the same as before; random weights get the variance
    of a layer with a third of the inputs. Names of tensors and random draws do not change.

    Returns:
        Name of the changed weight, in `net.body` if it has one.

    Raises:
        ConfigError: if the network does not start with a convolution over colors.
    """
    body = getattr(net, "body", net)
    name, stem = _find_stem(body)
    if stem is None or getattr(body, "transform_input", False):
        raise ConfigError("model.in_channels=1: this network takes colors only; leave model.in_channels=3.")
    stem.weight = nn.Parameter(stem.weight.detach().sum(dim=1, keepdim=True))
    stem.in_channels = 1
    net.register_forward_pre_hook(lambda _, inputs: (luminance(inputs[0]),))
    return f"{name}.weight"


def luminance(images: Tensor) -> Tensor:
    """Convert normalized RGB images (N, 3, H, W) to gray ones (N, 1, H, W); equal channels keep their value."""
    return _RED * images[:, 0:1] + _GREEN * images[:, 1:2] + _BLUE * images[:, 2:3]


def _find_stem(network: nn.Module) -> tuple[str, Any]:
    """Return the name of the first convolution over three colors, and the convolution; ("", None) if there is none."""
    convolutions = ((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    return next(((name, part) for name, part in convolutions if part.in_channels == 3), ("", None))
