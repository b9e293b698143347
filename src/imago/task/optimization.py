"""Build the optimizer of a network and its learning-rate schedule from settings."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from imago.errors import ConfigError
from imago.instantiate import accepts, build, import_target_or_none
from imago.optimizer.groups import parameter_groups

GROUP_SETTINGS = ("head_lr_multiplier", "layer_lr_decay")  # of `parameter_groups`, not of the optimizer
_LONG_EPOCH_STEPS = 1_000_000  # so many that any duration given in epochs is at least one step


def build_optimization(
    optimizer: Mapping[str, Any], schedule: Mapping[str, Any], net: nn.Module, total_steps: int, steps_per_epoch: int
) -> tuple[Optimizer, Any]:
    """Build the optimizer over the parameter groups of a network, and the schedule over the steps of a whole run.

    `optimizer` has the `_target_` of a `torch.optim` class, its settings and those of `parameter_groups`, `schedule`
    the `_target_` of an `LRScheduler` class and its settings.

    Raises:
        ConfigError: if a class does not exist or refuses its settings.
    """
    settings = dict(optimizer)
    factors = {key: settings.pop(key) for key in GROUP_SETTINGS if key in settings}
    groups = parameter_groups(net, settings.get("weight_decay", 0.0), settings.get("lr"), **factors)
    try:
        built = build(settings, groups, base=Optimizer)
    except ConfigError as error:
        raise ConfigError(f"optimizer: {error} To remove a setting, type ~optimizer.KEY.") from error
    except ValueError as error:  # raised by torch for an invalid value
        raise ConfigError(f"optimizer: {str(error).rstrip('.')}; configs/optimizer has values that work.") from error
    if import_target_or_none(schedule.get("_target_")) is ReduceLROnPlateau:
        raise ConfigError(
            "schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau: type schedule=plateau instead."
        )
    return built, build(schedule, built, base=LRScheduler, **schedule_steps(schedule, total_steps, steps_per_epoch))


def count_steps(steps_per_epoch: int, max_epochs: int | None, max_steps: int) -> int:
    """Return the optimizer steps of a whole run: until `max_epochs` or `max_steps` is reached; -1 is no limit."""
    limits = [(max_epochs or -1) * steps_per_epoch, max_steps]
    return min((limit for limit in limits if limit > 0), default=steps_per_epoch)


def schedule_steps(schedule: Mapping[str, Any], total_steps: int, steps_per_epoch: int) -> dict[str, int]:
    """Return those of the two numbers that the class of a schedule takes as arguments and that are not set."""
    target = import_target_or_none(schedule.get("_target_"))
    steps = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    return {name: value for name, value in steps.items() if accepts(target, name) and name not in schedule}


def check_optimization(optimizer: Mapping[str, Any], schedule: Mapping[str, Any]) -> None:
    """Build optimizer and schedule for a single weight and step them, to report errors before data is read.

    Raises:
        ConfigError: if a class does not exist, refuses its settings or cannot make a step.
    """
    one_weight = skip_init(nn.Linear, 1, 1, bias=False)  # draws no random numbers; some optimizers take only matrices
    nn.init.zeros_(one_weight.weight)
    one_weight.weight.grad = torch.zeros_like(one_weight.weight)
    try:
        built, scheduler = build_optimization(optimizer, schedule, one_weight, _LONG_EPOCH_STEPS, _LONG_EPOCH_STEPS)
        built.step(lambda: 0.0)  # LBFGS needs a closure
        scheduler.step()
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        classes = f"{optimizer['_target_']} and {schedule['_target_']}"
        raise ConfigError(f"optimizer and schedule: a step of {classes} fails ({reason}); choose others.") from error
