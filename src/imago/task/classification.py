"""Define the classification task: training, validation and test step of a network, its loss, optimizer, schedule."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from imago.errors import DivergedError
from imago.instantiate import build
from imago.model.adapt import build_network, keep_frozen_in_eval_mode
from imago.task.optimization import build_optimization
from imago.task.tta import predict_with_tta


class ClassificationTask(LightningModule):
    """Train a network on `(images (N, 3, H, W) float32, labels (N,))` and measure its loss and accuracy.

    Labels of mixed images are soft, (N, K); their largest class counts as the label.

    The arguments are plain data: they are saved in the checkpoint, which loads with `weights_only=True` and rebuilds
    the network.

    Args:
        net: `_target_` and settings of the network, see `imago.model.adapt`.
        optimizer: `_target_` of a `torch.optim` class and its settings.
        schedule: `_target_` and settings of the learning-rate schedule.
        loss: `_target_` and settings of an `nn.Module` that maps logits and labels to the mean loss.
        class_names: K names; the index of a name is its label.
        preprocess: `imago.images.Preprocess` as a dict.
        class_counts: training images of each class, passed to a loss with `weight`.
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
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["teacher"], logger=False)
        self.net = build_network(net, len(class_names), preprocess["size"])
        counts = {"class_counts": class_counts} if loss.get("weight") is not None else {}
        self.loss = build(loss, base=nn.Module, **counts)
        self.steps_per_epoch: int | None = None  # optimizer steps; None asks the Trainer
        self.tta = "none"  # views of an image that the test averages, see `imago.task.tta`
        self.last_logged: dict[str, float] = {}  # newest value of each name passed to `log_step`
        self.epoch_metrics = {split: EpochMetrics() for split in ("train", "val", "test")}
        self._logged_step = -1

    def train(self, mode: bool = True) -> Self:
        """Switch between training and eval mode; frozen parts of the network stay in eval mode."""
        super().train(mode)
        if freeze := self.hparams["net"].get("freeze"):
            keep_frozen_in_eval_mode(self.net, freeze)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, H, W) to logits (N, K)."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch; log on every `log_every_n_steps`-th optimizer step only."""
        images, labels = batch
        logits = self(images)
        loss = self.training_loss(images, logits, labels)
        self.epoch_metrics["train"].update(loss, logits, labels)
        is_due = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if is_due and self._logged_step != self.global_step:  # with accumulation, the first batch of a step logs
            self._logged_step = self.global_step
            self._log_training_step(loss, logits, labels)
        return loss

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss to minimize; validation and test use `self.loss`."""
        return self.loss(logits, labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.epoch_metrics["val"].update(self.loss(logits, labels), logits, labels)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        # fp32 after training in any precision, so that checkpoint and exported file predict the same labels
        with torch.autocast(self.device.type, enabled=False):
            logits = predict_with_tta(self, images.float(), self.tta)
        self.epoch_metrics["test"].update(self.loss(logits, labels), logits, labels)

    def on_train_epoch_start(self) -> None:
        self.epoch_metrics["train"] = EpochMetrics()

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")

    def on_validation_epoch_start(self) -> None:
        self.epoch_metrics["val"] = EpochMetrics()

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def on_test_epoch_start(self) -> None:
        torch.backends.cudnn.allow_tf32 = False  # the default rounds fp32 convolutions to a mantissa of 10 bits
        self.epoch_metrics["test"] = EpochMetrics()

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over the parameter groups and the schedule over the steps of the whole run."""
        epochs = self.trainer.max_epochs or 1
        # The Trainer builds the loaders to answer this, on a resumed run before the position in the data is restored.
        steps_per_epoch = self.steps_per_epoch or int(self.trainer.estimated_stepping_batches) // epochs
        settings = self.hparams["optimizer"], self.hparams["schedule"]
        optimizer, schedule = build_optimization(*settings, self.net, epochs, steps_per_epoch)
        config: Any = {"scheduler": schedule, "interval": "step", "reduce_on_plateau": False}  # `_step_plateau` does
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

    def log_step(self, values: dict[str, float], step: int) -> None:
        """Pass numbers to the loggers, and keep them in `last_logged` for the progress bar.

        `self.log` would convert each to a tensor and, for the bar, synchronize with the device on every step.
        """
        self.last_logged |= values
        for logger in self.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, step)

    def _log_training_step(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Log loss, accuracy and learning rate, which waits for the device; raise if the loss is not finite."""
        loss_value = loss.item()
        if not math.isfinite(loss_value) and not self._scale_can_fall():
            raise DivergedError(
                f"the loss is {loss_value} at epoch {self.current_epoch}, step {self.global_step}; "
                f"lower optimizer.lr, set trainer.gradient_clip_val=1.0, or look at the data."
            )
        accuracy = count_correct(logits, labels).item() / len(logits)
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_step({"train/loss_step": loss_value, "train/acc_step": accuracy, "lr": lr}, step=self.global_step)

    def _scale_can_fall(self) -> bool:
        """Return whether an infinite loss is an fp16 overflow: the scaler skips such a step and halves its scale.

        It is not an overflow if the weights are not finite, or if the scale is already below 1.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None or scaler.get_scale() < 1.0:
            return False
        return all(bool(value.isfinite().all()) for value in self.state_dict().values())

    def _log_epoch(self, split: str) -> None:
        result = self.epoch_metrics[split].result(self.trainer.strategy)
        if self.trainer.sanity_checking:
            return
        self._step_plateau(split, result)
        if split != "test":  # the number of tested images is part of the result
            result.pop("num_images", None)
        self.log_dict({f"{split}/{name}": value for name, value in result.items()}, sync_dist=True)

    def _step_plateau(self, split: str, result: dict[str, float]) -> None:
        """Step a schedule that monitors this split: Lightning would do so after the checkpoints are written."""
        for config in self.trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            monitored_split, _, name = getattr(schedule, "monitor", "").partition("/")
            if monitored_split == split:
                schedule.step(result[name])


class EpochMetrics:
    """Sum loss and correct predictions over batches; `result` reduces the sums over all ranks."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.num_correct: Tensor | int = 0
        self.num_images = 0

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), logits (N, K) and labels (N,) or soft labels (N, K)."""
        if not len(logits):  # the last batch of a rank may be empty, and its mean loss is NaN
            return
        self.loss_sum = loss.detach() * len(logits) + self.loss_sum
        self.num_correct = count_correct(logits, labels) + self.num_correct
        self.num_images += len(logits)

    def result(self, strategy: Strategy) -> dict[str, float]:
        """Return mean loss, accuracy in [0, 1] and number of images over all ranks; {} without images."""
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        device = strategy.root_device if is_distributed else "cpu"  # MPS has no float64
        sums = torch.tensor([self.loss_sum, self.num_correct, self.num_images], dtype=torch.float64, device=device)
        loss_sum, num_correct, num_images = strategy.reduce(sums, reduce_op="sum").tolist()
        if not num_images:
            return {}
        return {"loss": loss_sum / num_images, "acc": num_correct / num_images, "num_images": num_images}


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the rows of logits (N, K) that are largest at the label, or at the largest soft label: int64 ()."""
    targets = labels if labels.ndim == 1 else labels.argmax(dim=1)
    return (logits.argmax(dim=1) == targets).sum()
