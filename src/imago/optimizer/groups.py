"""Split parameters into groups: weight decay for the weights of layers only, and a learning rate for each layer."""

from typing import Any

from torch import nn

from imago.errors import ConfigError
from imago.model.layers import is_vector, layers_in_order


def parameter_groups(
    net: nn.Module,
    weight_decay: float,
    lr: float | None = None,
    head_lr_multiplier: float = 1.0,
    layer_lr_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups for any `torch.optim` class.

    Vectors and scalars (biases, scales and shifts of norms, tokens) and tables of biases do not decay: Goyal et al.
    2017, section 5.3 (arXiv:1706.02677); He et al. 2019, section 3.1 (arXiv:1812.01187).

    Args:
        net: the network; parameters without `requires_grad` are left out.
        weight_decay: of the weights of layers; all other parameters get 0.
        lr: learning rate of the network; required only if the layers differ.
        head_lr_multiplier: factor on the learning rate of the head.
        layer_lr_decay: factor from each layer to the one before it, in (0, 1]; the head has 1. Source: Clark et al.
            2020, appendix A (arXiv:2003.10555). `imago.model.layers` defines the layers.

    Returns:
        Groups with `weight_decay`, and with `lr` if the layers differ; the learning rate of the first one is closest to
        `lr`. A single group if nothing differs, as LBFGS requires.

    Raises:
        ConfigError: if the layers differ and `lr` is None.
    """
    factors = _lr_factors(net, head_lr_multiplier, layer_lr_decay)
    if factors and lr is None:
        raise ConfigError(
            "optimizer.head_lr_multiplier and optimizer.layer_lr_decay multiply optimizer.lr, which is not set; set it."
        )
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            decays = weight_decay != 0 and not (is_vector(parameter) or "bias" in name.rpartition(".")[2])
            groups.setdefault((factors.get(id(parameter), 1.0), decays), []).append(parameter)
    return [
        {"params": groups[factor, decays], "weight_decay": weight_decay if decays else 0.0}
        | ({} if lr is None or not factors else {"lr": lr * factor})
        for factor, decays in sorted(groups, key=lambda key: (max(key[0], 1 / key[0]), not key[1]))
    ]


def _lr_factors(net: nn.Module, head_lr_multiplier: float, layer_lr_decay: float) -> dict[int, float]:
    """Return the factor on the learning rate by the id of a parameter; {} if all are 1."""
    if head_lr_multiplier == layer_lr_decay == 1:
        return {}
    *backbone, head = layers_in_order(net)
    factors = {id(parameter): head_lr_multiplier for parameter in head}
    for distance, layer in enumerate(reversed(backbone), start=1):
        factors |= {id(parameter): layer_lr_decay**distance for parameter in layer}
    return factors
