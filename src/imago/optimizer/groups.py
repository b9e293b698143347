"""Which parameters decay, and how much of the learning rate each layer gets."""

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
    """Split the trainable parameters in groups for any `torch.optim` class.

    Vectors and scalars (biases, the scale and shift of norms, tokens) and tables of biases have no direction to shrink,
    and decaying them costs accuracy: Goyal et al. 2017, section 5.3 (arXiv:1706.02677); He et al. 2019, section 3.1
    (arXiv:1812.01187).

    Args:
        net: the network; parameters without `requires_grad` are left out.
        weight_decay: for weights of layers.
        lr: learning rate of the whole; needed only where the layers differ.
        head_lr_multiplier: the head learns that much faster than the rest.
        layer_lr_decay: factor from a layer to the one before it, in (0, 1]; the head has 1. Source: Clark et al. 2020,
            appendix A (arXiv:2003.10555). What counts as a layer: `imago.model.layers`.

    Returns:
        Groups with their own `weight_decay`, and `lr` where the layers differ; the first one's is nearest to `lr`.
        Where nothing differs it is one group: LBFGS takes no more.

    Raises:
        ConfigError: the layers are to differ, and there is no `lr`.
    """
    factors = _lr_factors(net, head_lr_multiplier, layer_lr_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            decays = weight_decay != 0 and not (is_vector(parameter) or "bias" in name.rpartition(".")[2])
            groups.setdefault((factors.get(id(parameter), 1.0), decays), []).append(parameter)
    if factors and lr is None:
        raise ConfigError("optimizer.head_lr_multiplier and layer_lr_decay share out optimizer.lr, which is not set.")
    return [
        {"params": groups[factor, decays], "weight_decay": weight_decay if decays else 0.0}
        | ({} if lr is None or not factors else {"lr": lr * factor})
        for factor, decays in sorted(groups, key=lambda key: (max(key[0], 1 / key[0]), not key[1]))
    ]


def _lr_factors(net: nn.Module, head_lr_multiplier: float, layer_lr_decay: float) -> dict[int, float]:
    """The factor on the learning rate by the id of a parameter; empty where all are 1."""
    if head_lr_multiplier == layer_lr_decay == 1:
        return {}
    *backbone, head = layers_in_order(net)
    factors = {id(parameter): head_lr_multiplier for parameter in head}
    for distance, layer in enumerate(reversed(backbone), start=1):
        factors |= {id(parameter): layer_lr_decay**distance for parameter in layer}
    return factors
