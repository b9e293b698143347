"""Make the gradient of an optimizer step that of the mean loss over all its images, however they are divided."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from imago.errors import ConfigError
from imago.task.base import ImageTask


class MeanGradient(Callback):
    """Weight the parts of an optimizer step (accumulated batches, shares of ranks) as one batch of all images would.

    Lightning divides each part by `accumulate_grad_batches`, also at the end of an epoch where fewer are left, and DDP
    averages over ranks, also if their shares differ. A loss that divides by a sum of weights instead of the number of
    images has the attribute `total_weight`: that sum over its last batch, a tensor (). Steps of a single part are not
    changed, nor is manual optimization.

    Raises:
        ConfigError: if a step has several parts and class weights, and it is not known by what each part was divided.
    """

    def __init__(self) -> None:
        self._num_done = 0  # parts of the current step, in this process
        self._num_images = 0  # of the current batch, in this process
        self._total_weight: Tensor | None = None  # of the current step, in this process

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _num_parts(trainer) > 1 and (reason := _unknown_division(pl_module)):
            raise ConfigError(
                f"loss.weight with accumulated batches or several devices: {reason}, so the parts of a step would "
                "count differently; use one device and trainer.accumulate_grad_batches=1, or remove loss.weight."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._num_images = len(batch[0])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Multiply the gradient of this part by its share: images or weights, relative to an equal share of images."""
        if not pl_module.automatic_optimization or _num_parts(trainer) == 1:
            return
        self._num_done += 1
        share = _step_images(trainer) / trainer.world_size
        weight = getattr(getattr(pl_module, "loss", None), "total_weight", None)
        if weight is not None:
            self._total_weight = weight.float() + (0.0 if self._total_weight is None else self._total_weight)
            loss.register_hook(lambda gradient: gradient * (weight / share))
        elif self._num_images != share:
            factor = self._num_images / share
            loss.register_hook(lambda gradient: gradient * factor)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Divide by the images or weights of the whole step; runs before gradients are logged and clipped."""
        if self._num_done == 0:
            return
        factor: Any = trainer.accumulate_grad_batches / self._num_done
        if self._total_weight is not None:
            if trainer.world_size > 1:  # without the barrier of Lightning's `reduce`, which would wait for the device
                torch.distributed.all_reduce(self._total_weight)
            factor = trainer.accumulate_grad_batches * _step_images(trainer) / self._total_weight
        self._num_done, self._total_weight = 0, None
        if not isinstance(factor, float) or factor != 1.0:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(gradients, factor)


def _num_parts(trainer: Trainer) -> int:
    return trainer.accumulate_grad_batches * trainer.world_size


def _step_images(trainer: Trainer) -> int:
    """Return the number of images in a training batch over all ranks."""
    loader: Any = trainer.train_dataloader
    return loader.batch_sampler.batch_size


def _unknown_division(task: LightningModule) -> str | None:
    """Return why it is not known by what a loss with class weights is divided; None if it is, or without weights."""
    loss, is_image_task = getattr(task, "loss", None), isinstance(task, ImageTask)
    has_buffer = isinstance(getattr(loss, "weight", None), Tensor) and task.automatic_optimization
    if not has_buffer and not (is_image_task and task.hparams["loss"].get("weight") is not None):
        return None
    name = type(task).__name__
    if not task.automatic_optimization:
        return f"{name} steps its optimizers itself (manual optimization)"
    if not hasattr(loss, "total_weight"):
        return (
            f"{type(loss).__name__} has no attribute total_weight, the sum of the weights in its last batch (None "
            "if it divides by the number of images)"
        )
    methods = ("training_step", "training_loss") if is_image_task and not task.divides_like_loss else ()
    for method in methods:
        if getattr(type(task), method) is not getattr(ImageTask, method):
            return f"{name} has its own {method}, and not divides_like_loss = True"
    return None
