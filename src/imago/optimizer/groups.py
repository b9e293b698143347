"""Which parameters decay: weights of layers do, norms and biases do not."""

from typing import Any

from torch import nn


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters in two groups for any `torch.optim` class.

    Vectors and scalars (biases, the scale and shift of norms) have no direction to shrink, and decaying them costs
    accuracy: Goyal et al. 2017, section 5.3 (arXiv:1706.02677); He et al. 2019, section 3.1 (arXiv:1812.01187).

    Args:
        net: the network; parameters without `requires_grad` are left out.
        weight_decay: for everything of two dimensions or more.

    Returns:
        One or two groups with their own `weight_decay`; an empty one is left out.
    """
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
