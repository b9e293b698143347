"""Build the optimizer of a network and its learning-rate schedule from settings."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import skip_init
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from imago.errors import ConfigError
from imago.instantiate import accepts, build, import_target_or_none
from imago.optimizer.groups import parameter_groups

_LONG_EPOCH_STEPS = 1_000_000  # an epoch in which every duration has at least one step


def build_optimization(
    optimizer: Mapping[str, Any],
    schedule: Mapping[str, Any],
    net: nn.Module,
    num_epochs: int,
    steps_per_epoch: int,
) -> tuple[Optimizer, Any]:
    """Build the optimizer over the parameter groups of a network, and the schedule over the steps of a whole run.

    Args:
        optimizer: `_target_` of a `torch.optim` class, its settings and those of `parameter_groups`.
        schedule: `_target_` of a class in `imago.schedule.schedules` and its settings.
        net: its trainable parameters are optimized.
        num_epochs: epochs of the whole run, which sets the length of the schedule.
        steps_per_epoch: optimizer steps in an epoch, which convert durations given in epochs.

    Raises:
        ConfigError: if a class does not exist or refuses its settings.
    """
    settings = dict(optimizer)
    factors = {key: settings.pop(key) for key in ("head_lr_multiplier", "layer_lr_decay") if key in settings}
    groups = parameter_groups(net, settings.get("weight_decay", 0.0), settings.get("lr"), **factors)
    try:
        built = build(settings, groups, base=Optimizer)
    except ConfigError as error:
        raise ConfigError(f"optimizer: {error} To remove a setting, type ~optimizer.KEY.") from error
    except ValueError as error:  # torch's message on a value
        raise ConfigError(f"optimizer: {str(error).rstrip('.')}; configs/optimizer lists others.") from error
    steps = {"total_steps": steps_per_epoch * num_epochs, "steps_per_epoch": steps_per_epoch}
    target = import_target_or_none(schedule.get("_target_"))
    steps = {name: value for name, value in steps.items() if accepts(target, name)}  # torch's own take none
    return built, build(schedule, built, base=LRScheduler, **steps)


def check_optimization(optimizer: Mapping[str, Any], schedule: Mapping[str, Any]) -> None:
    """Build both for a single weight, so that wrong settings are reported before data is read.

    Raises:
        ConfigError: if a class does not exist or refuses its settings.
    """
    single = skip_init(nn.Linear, 1, 1, bias=False)  # draws no random number; a matrix: some optimizers take no others
    build_optimization(optimizer, schedule, single, 1, _LONG_EPOCH_STEPS)
