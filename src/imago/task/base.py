"""ImageTask: the interface of a task for callbacks and commands, and all its code that is independent of the objective.

A task of your own overrides `training_step` or `training_loss`, or, for another objective than the classes of the data,
`output_names` and `inputs_and_targets`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from imago.errors import ConfigError
from imago.instantiate import accepts, build, import_target_or_none
from imago.loss.cross_entropy import weights_in_order
from imago.model.adapt import build_network, keep_frozen_in_eval_mode
from imago.task.metrics import EvaluationMetrics
from imago.task.optimization import build_optimization, count_steps
from imago.task.tta import predict_with_tta

Batch = tuple[Tensor, Tensor]


class ImageTask(LightningModule):
    """Train a network `net` that maps images to logits, and measure it on validation and test images.

    Batches are `(images (N, 3, H, W) float32, labels (N,))`; labels of mixed images are soft, (N, K). The arguments are
    plain data: they are saved in the checkpoint, which loads with `weights_only=True` and rebuilds the network.

    What callbacks and commands rely on:
        `net` maps images to logits (N, K); its keys in the checkpoint start with `net.`.
        `hparams` has `net`, `preprocess`, `class_names`, `metrics`, and `output_names`, the names of the K logits.
        `training_step` returns the loss, or a dict with `loss` and, for the training accuracy, `logits` and `labels`.
        Validation and test log `SPLIT/loss`, `SPLIT/acc` and `SPLIT/NAME` for each metric once per epoch.

    The callback `TrainMetrics` records and logs what `training_step` returns.

    With `self.automatic_optimization = False`, `training_step` steps the optimizers itself; the schedule is stepped
    once per batch, and steps are counted in batches.

    Args:
        net: `_target_` and settings of the network, see `imago.model.adapt`.
        optimizer: `_target_` of a `torch.optim` class and its settings.
        schedule: `_target_` and settings of the learning-rate schedule.
        loss: `_target_` and settings of an `nn.Module` that maps logits and labels to the mean loss. A `weight` by
            class name is passed as a list in the order of the outputs.
        metrics: `_target_` and settings of each `torchmetrics.Metric`, by its name.
        class_names: names of the classes of the data; the index of a name is its label.
        preprocess: `imago.images.Preprocess` as a dict.
        class_counts: training images of each class, passed to a loss with `weight` if the outputs are the classes.

    Attributes:
        divides_like_loss: whether a class that overrides `training_step` or `training_loss` divides every term by what
            `self.loss` divides by. If not, loss.weight is refused with accumulated batches or several devices.
        steps_per_epoch: optimizer steps per epoch; None: computed by the Trainer.
        tta: views of an image that the test averages, see `imago.task.tta`.
    """

    divides_like_loss = False

    def __init__(
        self,
        net: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        loss: Mapping[str, Any],
        class_names: Sequence[str],
        preprocess: Mapping[str, Any],
        metrics: Mapping[str, Mapping[str, Any] | None] | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["teacher"], logger=False)
        names = list(self.output_names(class_names))
        self.hparams.update(output_names=names, predicts_classes=self.predicts_classes(class_names))
        if type(self).forward is not ImageTask.forward:
            self.hparams.update(own_forward=True)  # no command can rebuild it from a checkpoint
        self.net = build_network(net, len(names), preprocess["size"], preprocess, names)
        weight = loss.get("weight")
        if weight == "balanced" and not self.hparams["predicts_classes"]:
            raise ConfigError(
                f"loss.weight=balanced counts images of the classes, and {type(self).__name__} has other outputs; "
                "type a number for each output."
            )
        if isinstance(weight, Mapping) or str(weight).startswith("{"):
            loss = {**loss, "weight": weights_in_order(loss["weight"], names)}
            self.hparams.update(loss=loss)
        needs_counts = loss.get("weight") is not None and self.hparams["predicts_classes"]
        needs_counts = needs_counts and accepts(import_target_or_none(loss["_target_"]), "class_counts")
        self.loss = build(loss, base=nn.Module, **({"class_counts": class_counts} if needs_counts else {}))
        splits = {split: EvaluationMetrics(metrics or {}, len(names)) for split in ("val", "test")}
        self.metrics: Any = nn.ModuleDict(splits)
        self.steps_per_epoch: int | None = None
        self.tta = "none"

    @classmethod
    def output_names(cls, class_names: Sequence[str]) -> Sequence[str]:
        """Return the names of the K logits; by default those of the classes of the data."""
        return class_names

    def inputs_and_targets(self, images: Tensor, labels: Tensor) -> Batch:
        """Return the inputs and the targets of the network; by default the images and their labels.

        Called for batches of training, validation and test. Targets are indices into `output_names`, (N,).
        """
        return images, labels

    @classmethod
    def predicts_classes(cls, class_names: Sequence[str]) -> bool:
        """Return whether the outputs are the classes of the data, which eval and calibration require.

        By default they are not if the class overrides what compares outputs with labels, or names other outputs.
        """
        compared = ("inputs_and_targets", "validation_step", "test_step")
        has_own_targets = any(getattr(cls, name) is not getattr(ImageTask, name) for name in compared)
        return not has_own_targets and list(cls.output_names(class_names)) == list(class_names)

    def __setattr__(self, name: str, value: Any) -> None:
        # A string that Lightning sets 40 times in a step; `Module` would look for tensors and modules.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and eval mode; frozen parts of the network stay in eval mode."""
        super().train(mode)
        if freeze := self.hparams["net"].get("freeze"):
            keep_frozen_in_eval_mode(self.net, freeze)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, H, W) to logits (N, K)."""
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | dict[str, Tensor]:
        """Return the loss to minimize, with the logits and labels from which the training accuracy is computed."""
        images, labels = self.inputs_and_targets(*batch)
        logits = self(images)
        return {"loss": self.training_loss(images, logits, labels), "logits": logits, "labels": labels}

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss to minimize; validation and test use `self.loss`."""
        return self.loss(logits, labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = self.inputs_and_targets(*batch)
        logits = self(images)
        self.metrics["val"].update(self.loss(logits, labels), logits, labels, len(batch[0]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = self.inputs_and_targets(*batch)
        # fp32 after training in any precision, so that checkpoint and exported file predict the same labels
        with torch.autocast(self.device.type, enabled=False):
            logits = predict_with_tta(self, images.float(), self.tta)
        self.metrics["test"].update(self.loss(logits, labels), logits, labels, len(batch[0]))

    def on_validation_epoch_start(self) -> None:
        self.metrics["val"].reset()

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        torch.backends.cudnn.allow_tf32 = False  # the default rounds fp32 convolutions to a mantissa of 10 bits
        self.metrics["test"].reset()

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over the parameter groups and the schedule over the steps of the whole run."""
        trainer = self.trainer
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
        # `estimated_stepping_batches` builds the loaders: on resume, before the position in the data is restored.
        steps_per_epoch = self.steps_per_epoch or int(trainer.estimated_stepping_batches) // epochs
        total_steps = count_steps(steps_per_epoch, trainer.max_epochs, trainer.max_steps)
        settings = self.hparams["optimizer"], self.hparams["schedule"]
        optimizer, schedule = build_optimization(*settings, self.net, total_steps, steps_per_epoch)
        config: Any = {"scheduler": schedule, "interval": "step"}
        if self.automatic_optimization:
            config["reduce_on_plateau"] = False  # done by `_log_metrics`
        return {"optimizer": optimizer, "lr_scheduler": config}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients; with bf16 also for a fused optimizer, which Lightning refuses because of fp16's scaler."""
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _log_metrics(self, split: str) -> None:
        """Log the epoch; step a schedule that monitors it, which Lightning does after the checkpoints are written."""
        result = self.metrics[split].compute(self.trainer.strategy)
        if self.trainer.sanity_checking:
            return
        for config in self.trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            monitored_split, _, name = getattr(schedule, "monitor", "").partition("/")
            if monitored_split == split:
                schedule.step(result[name])
        if split != "test":  # the number of tested images is part of the result
            result.pop("num_images", None)
        self.log_dict({f"{split}/{name}": value for name, value in result.items()}, sync_dist=True)
