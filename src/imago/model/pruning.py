"""Remove channels of a network by their magnitude, and shrink a newly built network to the shapes that remain."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imago.errors import ConfigError
from imago.model.layers import head_names
from imago.threads import one_intraop_thread

_MULTIPLE = 8  # channels in a vector register of a CPU in fp32, and what tensor cores of a GPU need in 16 bits


def prune(net: nn.Module, ratio: float, image_size: int) -> tuple[nn.Module, dict[str, list[int]]]:
    """Return a copy of a network with fewer channels, in eval mode, and the shape of each tensor that has changed.

    Layers whose outputs are added or concatenated lose the same channels: those whose weights, over all of these
    layers, have the smallest norms. The outputs of the head are kept. Source: Fang et al. 2023 (arXiv:2301.12900).

    Args:
        net: is not changed.
        ratio: share of the channels of each layer to remove, in (0, 1); what remains is rounded to a multiple of 8.
        image_size: side of the input in pixels.

    Raises:
        ConfigError: the network cannot be pruned, or no layer has channels to remove.
    """
    import torch_pruning

    if attention := next((type(part).__name__ for part in net.modules() if "Attention" in type(part).__name__), None):
        raise ConfigError(f"it has {attention}, and only convolutional networks can be pruned.")
    pruned = copy.deepcopy(net).eval().requires_grad_(True)  # the dependencies are read from the graph of autograd
    body: nn.Module = getattr(pruned, "body", pruned)
    image = torch.zeros(1, 3, image_size, image_size)
    layers = [part for part in pruned.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    settings = {
        "importance": torch_pruning.importance.MagnitudeImportance(p=2),
        "pruning_ratio_dict": {layer: _exact_ratio(layer.weight.shape[0], ratio) for layer in layers},
        "ignored_layers": [body.get_submodule(name) for name in head_names(net)],
        **{"in_channel_groups": {}, "out_channel_groups": {}},  # the defaults are shared by all calls
    }
    try:
        with one_intraop_thread(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unwrapped parameters")  # such as the scales of ConvNeXt: pruned too
            torch_pruning.BasePruner(pruned, image, **settings).step()
            with torch.no_grad():
                has_same_outputs = pruned(image).shape == net(image).shape
    except Exception as error:  # torch_pruning fails in any way on a network whose graph it misreads
        raise ConfigError(f"its layers depend on each other in a way that cannot be pruned ({error}).") from error
    if not has_same_outputs:
        raise ConfigError("its outputs would be pruned too.")
    before = net.state_dict()
    changed = {key: list(value.shape) for key, value in pruned.state_dict().items() if value.shape != before[key].shape}
    if not changed:
        remedy = f"as the nearest multiple of {_MULTIPLE} remains; type a larger ratio, or prune a wider network"
        raise ConfigError(f"no layer has channels to remove at this ratio, {remedy}.")
    return pruned, changed


def _exact_ratio(num_channels: int, ratio: float) -> float:
    """Return the ratio by which the nearest multiple of 8 channels remains."""
    num_kept = max(1, round(num_channels * (1 - ratio) / _MULTIPLE)) * _MULTIPLE
    return max(0.0, 1 - (num_kept + 0.5) / num_channels)  # torch_pruning rounds the kept ones down


def shrink(net: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Cut tensors of a network to smaller shapes, by their names, in place, and adapt the widths of their layers.

    Raises:
        ConfigError: a name or a shape that does not fit the network.
    """
    tensors = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    for name, shape in shapes.items():
        tensor = tensors.get(name, torch.empty(0))
        sizes = tuple(shape) if isinstance(shape, (list, tuple)) else ()
        fits = len(sizes) == tensor.dim() and all(
            type(size) is int and 0 < size <= old for size, old in zip(sizes, tensor.shape, strict=True)
        )
        if not fits:
            raise ConfigError(f"pruned_shapes: {name!r} of shape {shape} is no tensor of {type(net).__name__}.")
        path, _, attribute = name.rpartition(".")
        part = tensor.detach()[tuple(map(slice, sizes))].clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(net.get_submodule(path), attribute, nn.Parameter(part, tensor.requires_grad) if is_parameter else part)
    for path in {name.rpartition(".")[0] for name in shapes}:
        _set_widths(net.get_submodule(path))


def _set_widths(layer: Any) -> None:
    """Set the attributes of a layer that repeat the shapes of its tensors; its forward or its repr reads them."""
    names = ("weight", "running_mean")  # a norm may have only the second, a block with scales of its own neither
    shape: Any = next((tensor.shape for name in names if (tensor := getattr(layer, name, None)) is not None), None)
    if isinstance(layer, nn.Conv2d):
        is_depthwise = layer.groups == layer.out_channels
        layer.out_channels = shape[0]
        layer.groups = layer.out_channels if is_depthwise else layer.groups
        layer.in_channels = shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_features = shape[0]
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.normalized_shape = tuple(shape)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = shape[0]


def count_multiply_adds(net: nn.Module, image_size: int) -> int:
    """Return the multiplications of the convolutions and linear layers of a network, in eval mode, for one image."""
    counter = FlopCounterMode(display=False)  # counts a multiplication and an addition as two
    with counter, one_intraop_thread(), torch.no_grad():
        net(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2
