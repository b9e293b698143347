"""Check the loss, the limits and the sizes of a run whose data and task are built."""

import logging
import math
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from imago.data.datamodule import ImageDataModule
from imago.data.sampling import limited_batches
from imago.errors import ConfigError
from imago.task.base import ImageTask
from imago.text import counted, join_names

log = logging.getLogger(__name__)


def check_loss(target: str, task: ImageTask, data: ImageDataModule) -> None:
    """Compute the loss of two images whose logits are 0, to report errors before training.

    Raises:
        ConfigError: if the loss fails, or is not a single number.
    """
    num_outputs = len(task.hparams["output_names"])
    labels = {"class indices (2,)": torch.zeros(2, dtype=torch.int64)}
    if data.augment.is_mixing:
        labels["probabilities (2, K), as augment.mixup_alpha and cutmix_alpha mix images"] = torch.full(
            (2, num_outputs), 1 / num_outputs
        )
    for kind, values in labels.items():
        try:
            loss = task.loss(torch.zeros(2, num_outputs), values)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"loss._target_={target} fails for labels that are {kind}: {reason}") from error
        if loss.shape != ():
            raise ConfigError(
                f"loss._target_={target} returns {list(loss.shape)} for two images; return the mean, a single number."
            )


def check_num_batches(cfg: DictConfig, data: ImageDataModule) -> None:
    """Raise a ConfigError for limits that leave no batch, or a validation that would never come."""
    evaluated = {"val": "validation"} | ({"test": "the test"} if cfg.test else {})
    totals = {split: math.ceil(len(getattr(data.splits, split)) / data.batch_size) for split in evaluated}
    for split, total in {"train": data.batches_per_epoch(), **totals}.items():
        limit = cfg.trainer[f"limit_{split}_batches"]
        if limited_batches(total, limit) == 0 and limit != 0:
            is_overfitting = split == "train" and cfg.trainer.get("overfit_batches")
            raise ConfigError(
                f"trainer.{'overfit' if is_overfitting else f'limit_{split}'}_batches={limit} leaves none of the "
                f"{counted(total, 'batch', 'batches')} of {evaluated.get(split, 'an epoch')}; type a larger share, or "
                "a number of batches."
            )
    interval, num_batches = cfg.trainer.val_check_interval, data.batches_per_epoch(cfg.trainer.limit_train_batches)
    if isinstance(interval, float) and limited_batches(num_batches, interval) == 0:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is less than one of the {counted(num_batches, 'batch', 'batches')} "
            "of an epoch; type a larger share, or a number of batches."
        )
    if isinstance(interval, int) and interval > num_batches and cfg.trainer.check_val_every_n_epoch is not None:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is more than the {num_batches} batches of an epoch; type a smaller "
            "number, or trainer.check_val_every_n_epoch=null to count the batches over epochs."
        )
    if data.batch_size > len(data.splits.train):
        log.warning(
            "data.batch_size=%d is more than the %d training images: each step uses all of them",
            data.batch_size,
            len(data.splits.train),
        )


def warn_of_unvalidated_epochs(trainer: Trainer) -> None:
    """Warn if the last epochs are not validated: only the weights of validated epochs can become the best ones."""
    every, max_epochs = trainer.check_val_every_n_epoch, trainer.max_epochs or 1
    has_best = any(getattr(callback, "monitor", None) for callback in trainer.checkpoint_callbacks)
    num_left = max_epochs % every if every else 0
    if num_left and has_best and trainer.limit_val_batches:
        fault = f"no epoch after epoch {max_epochs - num_left} of {max_epochs} is validated or tested"
        if num_left == max_epochs:
            fault = f"no epoch of {max_epochs} is validated, so that there is no best checkpoint"
        remedy = f"type trainer.check_val_every_n_epoch={max_epochs}"
        log.warning("trainer.check_val_every_n_epoch=%d: %s; %s", every, fault, remedy)


def check_split_sizes(data: ImageDataModule, num_processes: int) -> None:
    """Raise a ConfigError if a process would get no image of a split: its metrics could not be computed."""
    for name, split in data.splits.items():
        if len(split) < num_processes:
            raise ConfigError(
                f"trainer.devices: {num_processes} processes are more than the {len(split)} images of the {name} "
                "split; use fewer, or more images."
            )


def warn_of_text_order(class_names: Sequence[str]) -> None:
    """Log a warning if class names are numbers and their order is another one."""
    if all(name.isdecimal() for name in class_names) and list(class_names) != sorted(class_names, key=int):
        log.warning(
            "the classes are numbers in the order of texts: %s; a list with a number for each class is in this order, "
            "loss.weight={NAME: NUMBER, ...} in any",
            join_names(class_names, 12),
        )


def warn_of_unused_splits(typed: Sequence[str], data: ImageDataModule) -> None:
    """Log each setting of the size of a split that was typed, as KEY=VALUE, although the split is not drawn with it."""
    given = [split for split in ("val", "test") if split not in data.random_splits]
    plan, source = data.split_plan, "data.split_file" if data.split_plan.split_file else "the dataset"
    reasons = {f"data.{split}_fraction": f"{source} has a {split} split" for split in given}
    if plan.val_as_test:
        reasons["data.test_fraction"] = "data.val_as_test=true makes val the test split"
    if plan.fold is None:
        reasons["data.num_folds"] = "there is no data.fold"
    else:
        reasons["data.val_fraction"] = "data.fold determines val"
    for key, reason in reasons.items():
        if any(text.partition("=")[0].lstrip("+") == key for text in typed):
            log.warning("%s has no effect: %s", key, reason)
