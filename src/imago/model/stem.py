"""Fit the first convolution to small or gray images, and check that a network takes images of a size."""

from itertools import chain

import torch
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.images import SMALL_PX

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601, section 2.5.1


def fit_stem(network: nn.Module, image_size: int) -> list[str]:
    """Make the first convolution keep the resolution of images of up to `SMALL_PX`; change nothing for larger ones.

    A convolution wider than 3x3 is replaced by a new 3x3 one with stride 1; a 3x3 one keeps its weights and gets stride
    1. In ResNets the max-pool after it is removed too. Patch embeddings (kernel as wide as the stride, as in ViT, Swin
    and ConvNeXt) are kept: the rest of the network is built for them.

    Args:
        network: of any architecture of torchvision or timm; changed in place.
        image_size: side of the input in pixels.

    Returns:
        Names of the modules whose weights are new.

    Source: He et al. 2016, section 4.2 (arXiv:1512.03385), whose CIFAR-10 nets start with a 3x3 convolution of stride 1
    and have no max-pool.
    """
    name = _stem_name(network)
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
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")  # as torchvision initializes its ResNets
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    network.set_submodule(name, new)
    return [name]


def convert_to_gray(network: nn.Module) -> str:
    """Give the first convolution one input channel, with weights summed over red, green and blue.

    On a gray image, whose three channels are equal, the output is the same as before; random weights get the variance
    of a layer with a third of the inputs. Names of tensors and random draws do not change.

    Args:
        network: changed in place.

    Returns:
        Name of the changed weight.

    Raises:
        ConfigError: if the network does not start with a convolution over colors.
    """
    name = _stem_name(network)
    if name is None or getattr(network, "transform_input", False):
        raise ConfigError("model.in_channels=1: this network takes colors only; leave model.in_channels=3.")
    stem = network.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    stem.weight = nn.Parameter(stem.weight.detach().sum(dim=1, keepdim=True))
    stem.in_channels = 1
    return f"{name}.weight"


def luminance(images: Tensor) -> Tensor:
    """Convert normalized RGB images (N, 3, H, W) to gray ones (N, 1, H, W); equal channels keep their value."""
    return _RED * images[:, 0:1] + _GREEN * images[:, 1:2] + _BLUE * images[:, 2:3]


def check_image_size(network: nn.Module, name: str, image_size: int, fitting_size: int, num_classes: int) -> None:
    """Trace one image through a network on the meta device, which computes nothing.

    Args:
        network: takes (N, 3, H, W); left in eval mode, as one image may be too few for BatchNorm's statistics.
        name: of the network.
        image_size: side of the image in pixels.
        fitting_size: a side that the network was made for, in pixels.
        num_classes: K.

    Raises:
        ConfigError: the network fails, or its output is not (N, K).
    """
    network.eval()
    state = {key: value.to("meta") for key, value in chain(network.named_parameters(), network.named_buffers())}
    image = torch.zeros(1, 3, image_size, image_size, device="meta")
    try:
        with torch.no_grad():
            logits = torch.func.functional_call(network, state, (image,))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ConfigError(
            f"model.name={name} cannot take images of {image_size} px ({reason}); type e.g. "
            f"preprocess.size={fitting_size}."
        ) from error
    if getattr(logits, "shape", None) != (1, num_classes):
        raise ConfigError(f"model.name={name} is not a classifier: its output is not {num_classes} logits per image.")


def _stem_name(network: nn.Module) -> str | None:
    """Return the name of the first convolution over three colors."""
    return next((name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)
