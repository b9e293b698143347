"""Show a progress bar with loss, accuracy and images/s on a terminal, and log one line per epoch."""

import logging
import sys
from time import perf_counter

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from imago.callbacks.train_metrics import TrainMetrics
from imago.text import metric_text

log = logging.getLogger(__name__)

# Logged name -> label in the bar and format of the value.
_BAR_METRICS = {
    "train/loss_step": ("loss", "{:.3f}"),
    "train/acc_step": ("acc", "{:.1%}"),
    "images_per_s": ("images/s", "{:,.0f}"),
}
_FORMATS = {"loss": "{:.3f}".format, "acc": "{:6.2%}".format}  # of an epoch; other metrics have 4 decimals


class Progress(TQDMProgressBar):
    """Show the bar on a terminal only: in a log file it would add thousands of lines.

    `refresh_every_n_steps` are the batches between two updates of the bar; an update can take longer than a step.
    """

    def __init__(self, refresh_every_n_steps: int) -> None:
        super().__init__(refresh_rate=refresh_every_n_steps if sys.stdout.isatty() else 0)
        self._epoch_start_s = 0.0
        self._first_epoch = 0
        self._val_texts: dict[str, str] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict]:
        """Return the values that the bar shows: those of the last logging step and the last validation."""
        newest = (c.newest for c in trainer.callbacks if isinstance(c, TrainMetrics))  # type: ignore[attr-defined]
        logged = next(newest, {})
        shown = {label: spec.format(logged[name]) for name, (label, spec) in _BAR_METRICS.items() if name in logged}
        return {**shown, **self._val_texts}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._val_texts = {  # formatted once: reading a value waits for the device
            name: _FORMATS.get(name[4:], metric_text)(float(value)).strip()
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("val/", "val_")) and name != "val/loss"  # which the line of the epoch has
        }
        super().on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first_epoch = trainer.current_epoch
        self._epoch_start_s = perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The previous epoch is logged here: Lightning computes its training values after on_train_epoch_end.
        if trainer.current_epoch > self._first_epoch:
            self._log_epoch(trainer)
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")
        self._epoch_start_s = perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._log_epoch(trainer)

    def _log_epoch(self, trainer: Trainer) -> None:
        """Log number, losses, accuracies and duration of the epoch that has ended."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"epoch {trainer.current_epoch:>3}/{trainer.max_epochs}"]
        for split in ("train", "val"):
            values = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(f"{split}/")}
            texts = [f"{name} {_FORMATS.get(name, metric_text)(value)}" for name, value in values.items()]
            parts += [" ".join([split, *texts])] if values else []
        parts += [f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name]  # of another task
        parts.append(f"{perf_counter() - self._epoch_start_s:.1f} s")
        self.train_progress_bar.clear()
        log.info("   ".join(parts))
