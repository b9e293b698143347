"""The first convolution of a network, fitted to small images and to gray ones."""

from torch import Tensor, nn

from imago.errors import ConfigError
from imago.images import SMALL_PX

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601, section 2.5.1


def fit_stem(network: nn.Module, image_size: int) -> list[str]:
    """Make the first convolution keep the resolution of images of up to `SMALL_PX`; larger ones change nothing.

    Of 7x7 or the like it is replaced by a new 3x3 one with stride 1, of 3x3 it keeps its weights and gets stride 1; in
    ResNets the max-pool after it goes too. Patch embeddings (kernel as wide as the stride, as in ViT, Swin and
    ConvNeXt) stay: the rest is built for them.

    Args:
        network: of any architecture of torchvision or timm; changed in place.
        image_size: side of the input in pixels.

    Returns:
        Names of the modules whose weights are new.

    Source: He et al. 2016, section 4.2 (arXiv:1512.03385), whose CIFAR-10 nets open with a 3x3 convolution of stride 1
    and have no max-pool.
    """
    name = stem_name(network)
    if image_size > SMALL_PX or name is None:
        return []
    stem: nn.Module = network.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    if stem.kernel_size == stem.stride:
        return []
    if type(network).__name__ == "ResNet":  # torchvision's and timm's
        network.maxpool = nn.Identity()
    if max(stem.kernel_size) <= 3:
        stem.stride = (1, 1)
        return []
    new = nn.Conv2d(stem.in_channels, stem.out_channels, 3, stride=1, padding=1, bias=stem.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")  # as torchvision begins its ResNets
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    network.set_submodule(name, new)
    return [name]


def convert_to_gray(network: nn.Module) -> str:
    """Give the first convolution one input channel, whose weights are the sums over red, green and blue.

    On a gray image, whose three channels are equal, the sums compute what the three channels did; and of random
    weights they have just the variance that a third of the inputs asks for. Tensors' names stay, the draws too.

    Args:
        network: changed in place.

    Returns:
        Name of the changed weight.

    Raises:
        ConfigError: if the network opens with something else than a convolution over colors.
    """
    name = stem_name(network)
    if name is None or getattr(network, "transform_input", False):
        raise ConfigError("model.in_channels=1: this network takes colors only; leave model.in_channels=3.")
    stem = network.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    stem.weight = nn.Parameter(sum_colors(stem.weight.detach()))
    stem.in_channels = 1
    return f"{name}.weight"


def sum_colors(weight: Tensor) -> Tensor:
    """Sum the weight (out, 3, h, w) of a first convolution over its input channels: (out, 1, h, w)."""
    return weight.sum(dim=1, keepdim=True)


def luminance(images: Tensor) -> Tensor:
    """Mix normalized RGB images (N, 3, H, W) to gray ones (N, 1, H, W); equal channels stay what they are."""
    return _RED * images[:, 0:1] + _GREEN * images[:, 1:2] + _BLUE * images[:, 2:3]


def stem_name(network: nn.Module) -> str | None:
    """Name the first convolution, if it takes the three colors."""
    return next((name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)
