"""The classification task: one network, one loss, one optimizer, and counts instead of costly metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from imago.errors import DivergedError
from imago.instantiate import build
from imago.task.epoch_metrics import EpochMetrics, count_right
from imago.task.optimization import build_optimizer, build_schedule
from imago.task.tta import predict_with_tta


class ClassificationTask(LightningModule):
    """Trains a network on `(images (N, 3, H, W) float32, labels (N,))` and counts what it gets right.

    Where training mixes images, its labels are soft, (N, K), and the largest one counts as the right answer.

    The arguments are plain data: they go into the checkpoint, which therefore loads with `weights_only=True` and can
    rebuild the network by itself.

    Args:
        net: `_target_` and settings of the network.
        optimizer: `_target_` of a `torch.optim` class and its settings.
        schedule: `_target_` and settings of the learning rate's course.
        loss: `_target_` and settings of the loss.
        class_names: K names; the place of a name is its label.
        preprocess: the record of `imago.images.Preprocess`.
        class_counts: training images of each class, which a loss with `weight` is given; None in older checkpoints.
        extra_targets: packages of the user's own that targets may name; never read from a checkpoint.
    """

    def __init__(
        self,
        net: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        loss: Mapping[str, Any],
        class_names: Sequence[str],
        preprocess: Mapping[str, Any],
        class_counts: Sequence[int] | None = None,
        extra_targets: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["extra_targets", "teacher"], logger=False)  # plain data
        self.extra_targets = tuple(extra_targets)
        facts = {"num_classes": len(class_names), "image_size": preprocess["size"]}
        self.net = build(net, extra_targets=self.extra_targets, **facts)
        counted = {"class_counts": class_counts} if loss.get("weight") is not None else {}
        self.loss = build(loss, extra_targets=self.extra_targets, **counted)
        self.steps_per_epoch: int | None = None  # optimizer steps; None asks the Trainer
        self.tta = "none"  # views of an image that the test takes the mean over, see `imago.task.tta`
        self._logged_step = -1
        self.shown: dict[str, float] = {}  # the newest number under each name that `log_step` was given
        self.scores = {split: EpochMetrics() for split in ("train", "val", "test")}

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, H, W) to logits (N, K)."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Give the loss of a batch; logs only on every `log_every_n_steps`-th optimizer step."""
        images, labels = batch
        logits = self(images)
        loss = self.training_loss(images, logits, labels)
        self.scores["train"].update(loss, logits, labels)
        # Of the batches that accumulate to one step, the first logs.
        is_due = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if is_due and self._logged_step != self.global_step:
            self._logged_step = self.global_step
            self._log_step(loss, logits, labels)
        return loss

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the loss that is trained on; validation and test have `self.loss`."""
        return self.loss(logits, labels)

    def on_train_epoch_start(self) -> None:
        self.scores["train"] = EpochMetrics()

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")

    def on_validation_epoch_start(self) -> None:
        self.scores["val"] = EpochMetrics()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.scores["val"].update(self.loss(logits, labels), logits, labels)

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def on_test_epoch_start(self) -> None:
        torch.backends.cudnn.allow_tf32 = False  # its default rounds the fp32 of convolutions to 10 bits
        self.scores["test"] = EpochMetrics()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        # fp32 whatever the training precision was: then checkpoint and exported file give the same labels.
        with torch.autocast(self.device.type, enabled=False):
            logits = predict_with_tta(self, images.float(), self.tta)
        self.scores["test"].update(self.loss(logits, labels), logits, labels)

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over the decay groups and the schedule over the steps of the whole run."""
        optimizer = build_optimizer(self.hparams["optimizer"], self.net, self.extra_targets)
        epochs = self.trainer.max_epochs or 1
        # Asking the Trainer makes it build the loaders, which on a resumed run is before it knows where to go on.
        steps_per_epoch = self.steps_per_epoch or int(self.trainer.estimated_stepping_batches) // epochs
        schedule = build_schedule(self.hparams["schedule"], optimizer, epochs, steps_per_epoch, self.extra_targets)
        facts: Any = {"scheduler": schedule, "interval": "step", "reduce_on_plateau": False}  # see `_tell_schedule`
        return {"optimizer": optimizer, "lr_scheduler": facts}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip before a fused optimizer's step under bf16, too: what Lightning refuses it for is the scale of fp16."""
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            how = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, how)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _log_step(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """The one place in training that waits for the device; a loss that is no number stops the run here."""
        value = loss.item()
        if not math.isfinite(value) and not self._scale_can_fall():
            raise DivergedError(
                f"the loss is {value} at epoch {self.current_epoch}, step {self.global_step}; "
                f"lower optimizer.lr, set trainer.gradient_clip_val=1.0, or look at the data."
            )
        num_right = count_right(logits, labels).item()
        self.log_step(
            {
                "train/loss_step": value,
                "train/acc_step": num_right / len(logits),
                "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            },
            step=self.global_step,
        )

    def _scale_can_fall(self) -> bool:
        """Whether this is one of fp16's overflows: the scaler leaves such a step out and halves its scale for the next.

        Not so where the weights themselves are broken, or where the scale has fallen so far that it is not to blame.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None or scaler.get_scale() < 1.0:
            return False
        return all(bool(value.isfinite().all()) for value in self.state_dict().values())

    def log_step(self, values: dict[str, float], step: int) -> None:
        """Hand numbers to the loggers as they are, and keep them in `shown` for the bar.

        `self.log` would make a tensor of each, read it back for the loggers, and, for the bar, again on every step.
        """
        self.shown |= values
        for logger in self.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, step)

    def _log_epoch(self, split: str) -> None:
        result = self.scores[split].result(self.trainer.strategy)
        if self.trainer.sanity_checking:
            return
        self._tell_schedule(split, result)
        if split != "test":  # how many images were tested is a result; how many were seen in an epoch is not
            result.pop("num_images", None)
        self.log_dict({f"{split}/{name}": value for name, value in result.items()}, sync_dist=True)

    def _tell_schedule(self, split: str, result: dict[str, float]) -> None:
        """Show a schedule the number that it watches: Lightning would, but only after the checkpoints are written."""
        for config in self.trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            watched_split, _, name = getattr(schedule, "monitor", "").partition("/")
            if watched_split == split:
                schedule.step(result[name])
