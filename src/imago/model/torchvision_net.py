"""Any of torchvision's classifiers by its name, pretrained or not, with a head for the data and a stem for its size."""

import logging
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torchvision import models

from imago.errors import ConfigError
from imago.images import SMALL_PX
from imago.model.weights import check_name, find_weights, keep_weights, read_weights, weights_preprocess

log = logging.getLogger(__name__)


class TorchvisionNet(nn.Module):
    """A torchvision network whose head has the data's class count, and which takes small pictures too.

    Up to `SMALL_PX` the first convolution keeps the resolution: of 7x7 or the like it is replaced by a new 3x3 one with
    stride 1 (in ResNets the max-pool after it goes too), of 3x3 it keeps its weights and gets stride 1. Names and
    shapes of the tensors do not depend on `weights`, so a checkpoint is rebuilt with `weights=None`, without the file;
    neither do the first values of the new parts.

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record.
        name: of the network, as torchvision spells it.
        weights: "default", a name such as IMAGENET1K_V1, the path of a .pth file, or None for random weights.
        freeze: "backbone" trains the head (and a new stem) only; everything else stays in eval mode, so its BatchNorm
            statistics stay as they are. None trains everything.

    Raises:
        ConfigError: a name or a size that cannot work.
        DataError: weights that are missing, damaged or of another network.

    Source of the small stem: He et al. 2016, section 4.2 (arXiv:1512.03385), whose CIFAR-10 nets open with a 3x3
    convolution of stride 1 and have no max-pool.
    """

    # What a run asks before it builds anything.
    find_weights = staticmethod(find_weights)
    weights_preprocess = staticmethod(weights_preprocess)

    def __init__(self, num_classes: int, image_size: int, name: str, weights: str | None, freeze: str | None) -> None:
        super().__init__()
        check_name(name)
        if freeze not in (None, "backbone"):
            raise ConfigError(f"model.freeze={freeze} is not one of null, backbone.")
        file = find_weights(name, weights)
        self.freeze = freeze
        self.network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
        self.new_parts = [_head_name(self.network), *fit_stem(self.network, image_size)]
        _refuse_size(self.network, name, image_size)
        if file is not None:
            state = read_weights(file)
            new = keep_weights(self.network, state, self.new_parts, file)
            log.info("%s: %s", name, _describe_kept(state, new, file.name))
        if freeze == "backbone":
            self._freeze_backbone(name)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised pictures (N, 3, H, W) to logits (N, K)."""
        return self.network(images)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen part stays in evaluation, dropout included."""
        super().train(mode)
        if self.freeze == "backbone":
            self.network.eval()
            for part in self.new_parts:
                self.network.get_submodule(part).train(mode)
        return self

    def _freeze_backbone(self, name: str) -> None:
        self.network.requires_grad_(False)
        for part in self.new_parts:
            self.network.get_submodule(part).requires_grad_(True)
        total = sum(parameter.numel() for parameter in self.parameters())
        trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        parts = " and ".join(self.new_parts)
        log.info(
            "%s: the backbone is frozen, %s of %s parameters train (%s)", name, f"{trained:,}", f"{total:,}", parts
        )


def fit_stem(network: nn.Module, image_size: int) -> list[str]:
    """Make the first convolution keep the resolution of pictures of up to `SMALL_PX`; larger ones change nothing.

    Patch embeddings (kernel as wide as the stride, as in ViT, Swin and ConvNeXt) stay: the rest is built for them.

    Args:
        network: of any torchvision architecture; changed in place.
        image_size: side of the input in pixels.

    Returns:
        Names of the modules whose weights are new.
    """
    name, stem = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if image_size > SMALL_PX or stem.kernel_size == stem.stride:
        return []
    if isinstance(network, models.ResNet):
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


def _head_name(network: nn.Module) -> str:
    """The last linear layer; SqueezeNet has none, its head is the last (1x1) convolution."""
    for kind in (nn.Linear, nn.Conv2d):
        names = [name for name, module in network.named_modules() if isinstance(module, kind)]
        if names:
            return names[-1]
    raise AssertionError("every torchvision classifier ends in a linear layer or a convolution")


def _refuse_size(network: nn.Module, name: str, image_size: int) -> None:
    """Try one picture without computing anything: a size that does not fit would end deep inside of torch."""
    network.eval()  # one picture may be too few for BatchNorm's statistics; the constructor switches back
    state = {key: value.to("meta") for key, value in network.state_dict().items()}
    try:
        with torch.no_grad():
            torch.func.functional_call(network, state, (torch.zeros(1, 3, image_size, image_size, device="meta"),))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"model.name={name} cannot take pictures of {image_size} px ({reason}); type e.g. preprocess.size=224."
        ) from error


def _describe_kept(state: dict[str, Tensor], new: Sequence[str], source: str) -> str:
    """Count what was kept, name what is new, and say that the file's own head or stem is dropped."""
    dropped = [key for key in new if key in state]
    text = f"{len(state) - len(dropped)} of {len(state)} pretrained tensors kept from {source}"
    if new:
        text += f" (new: {', '.join(new)})"
    if dropped:
        shapes = ", ".join(f"{key} {'x'.join(map(str, state[key].shape))}" for key in dropped)
        text += f"; dropped from the file: {shapes}"
    return text
