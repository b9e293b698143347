"""The optimizer of a network and the course of its learning rate, as the settings name them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import skip_init
from torch.optim import Optimizer

from imago.errors import ConfigError
from imago.instantiate import build
from imago.optimizer.groups import parameter_groups

_MANY_STEPS = 1_000_000  # an epoch in which no length given in steps is too long


def build_optimizer(settings: Mapping[str, Any], net: nn.Module, extra_targets: Sequence[str] = ()) -> Optimizer:
    """Build the optimizer over the decay groups of a network.

    Args:
        settings: `_target_` of a `torch.optim` class and its settings, with those of `parameter_groups`.
        net: whose trainable parameters it steps.
        extra_targets: packages of the user's own that the target may name.

    Raises:
        ConfigError: if there is no such class, or it does not take the settings.
    """
    settings = dict(settings)
    shares = {key: settings.pop(key) for key in ("head_lr_multiplier", "layer_lr_decay") if key in settings}
    groups = parameter_groups(net, settings.get("weight_decay", 0.0), settings.get("lr"), **shares)
    try:
        return build(settings, groups, extra_targets=extra_targets)
    except ConfigError as error:
        raise ConfigError(f"optimizer: {error} To take a setting out, type ~optimizer.KEY.") from error
    except ValueError as error:  # torch's own word on its settings
        raise ConfigError(f"optimizer: {str(error).rstrip('.')}; configs/optimizer lists others.") from error


def build_schedule(
    settings: Mapping[str, Any],
    optimizer: Optimizer,
    num_epochs: int,
    steps_per_epoch: int,
    extra_targets: Sequence[str] = (),
) -> Any:
    """Build the schedule over the optimizer steps of a whole run."""
    total_steps = steps_per_epoch * num_epochs
    facts = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    return build(settings, optimizer, extra_targets=extra_targets, **facts)


def check_optimization(
    optimizer: Mapping[str, Any], schedule: Mapping[str, Any], extra_targets: Sequence[str] = ()
) -> None:
    """Build both over a single weight, so that what they refuse is told before any data is read.

    Raises:
        ConfigError: if there is no such class, or it does not take the settings.
    """
    single = skip_init(nn.Linear, 1, 1, bias=False)  # draws no random number; a matrix, as some take nothing else
    build_schedule(schedule, build_optimizer(optimizer, single, extra_targets), 1, _MANY_STEPS, extra_targets)
