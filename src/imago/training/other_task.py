"""Build a LightningModule that is not an `ImageTask`, such as one of another project, from the settings of a run."""

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from imago.data.datamodule import ImageDataModule
from imago.errors import ConfigError
from imago.instantiate import build, import_target, to_plain
from imago.model.adapt import build_network
from imago.runs.checkpoint import is_loadable
from imago.task.base import ImageTask
from imago.task.optimization import GROUP_SETTINGS, count_steps, schedule_steps
from imago.trust import without_files

# Parameter of a LightningModule -> group of settings that its argument is built from.
_GROUPS = {
    **{"net": "model", "model": "model", "optimizer": "optimizer"},
    **dict.fromkeys(("schedule", "scheduler", "lr_scheduler"), "schedule"),
}
_PLAIN_TYPES = (str, int, float, bool, "str", "int", "float", "bool")  # of a `model: str`, which gets no network


def is_image_task(cfg: DictConfig) -> bool:
    """Return whether `task._target_` is derived from `ImageTask`."""
    target = import_target(cfg.task._target_)
    return isinstance(target, type) and issubclass(target, ImageTask)


def count_steps_per_epoch(cfg: DictConfig, data: ImageDataModule) -> int:
    """Return the optimizer steps in an epoch."""
    return math.ceil(data.batches_per_epoch(cfg.trainer.limit_train_batches) / cfg.trainer.accumulate_grad_batches)


def build_other_task(cfg: DictConfig, data: ImageDataModule) -> LightningModule:
    """Build the module, and pass it the network, optimizer and scheduler of the config groups if it takes them.

    The network is built for the classes of the data; optimizer and scheduler are `functools.partial`s, to be called
    with the parameters or the optimizer. `num_classes` is filled in.

    Raises:
        ConfigError: if the target is not a LightningModule, or its arguments do not match.
    """
    if cfg.tta != "none":
        raise ConfigError(f"tta={cfg.tta} needs a task derived from imago.task.base.ImageTask; type tta=none.")
    target, num_classes = import_target(cfg.task._target_), len(data.class_names)
    parameters = inspect.signature(target).parameters
    steps_per_epoch = count_steps_per_epoch(cfg, data)
    total_steps = count_steps(steps_per_epoch, cfg.trainer.max_epochs, cfg.trainer.get("max_steps", -1))
    settings: Any = {key: value for key, value in to_plain(cfg.task).items() if key in parameters}
    arguments: dict[str, Any] = {"num_classes": num_classes} if "num_classes" in parameters else {}
    for name in [name for name in _GROUPS if name in parameters and parameters[name].annotation not in _PLAIN_TYPES]:
        node = settings.pop(name, to_plain(cfg[_GROUPS[name]]))
        if not isinstance(node, Mapping):
            arguments[name] = node  # typed as something else, such as null
        elif _GROUPS[name] == "model":
            if cfg.resume is not None:  # the checkpoint holds all weights
                node = without_files(node, Path(cfg.resume))
            arguments[name] = build_network(
                node, num_classes, data.preprocess.size, data.preprocess.to_dict(), data.class_names
            )
        else:
            steps = schedule_steps(node, total_steps, steps_per_epoch) if _GROUPS[name] == "schedule" else {}
            own_settings = {key: value for key, value in node.items() if key not in GROUP_SETTINGS}
            arguments[name] = build({**own_settings, **steps, "_partial_": True})
    return build({"_target_": cfg.task._target_, **settings}, base=LightningModule, **arguments)


def unsavable_hyperparameters(task: LightningModule) -> list[str]:
    """Return the hyperparameters that are not plain data: a checkpoint that holds them could not be loaded safely."""
    return [name for name, value in task.hparams.items() if not is_loadable(value)]


class ScheduleIntervalCheck(Callback):
    """Refuse a module that steps one of our schedules once per epoch: they count optimizer steps."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            name = type(config.scheduler).__name__
            if config.interval == "epoch" and type(config.scheduler).__module__.startswith("imago."):
                raise ConfigError(
                    f"schedule: {type(pl_module).__name__} steps its scheduler once per epoch, but {name} counts "
                    'optimizer steps; return "interval": "step" in its configure_optimizers, or type '
                    "task.scheduler=null or e.g. schedule._target_=torch.optim.lr_scheduler.CosineAnnealingLR "
                    "schedule.T_max=10."
                )
