"""Writes what came out into the run directory, from the process that knows it: rank 0, not always the main process."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.callbacks.data_wait import data_wait_advice_for
from imago.callbacks.speed import Speed
from imago.data.file_datamodule import FileDataModule
from imago.resources import available_cores
from imago.runs.checkpoint import read_checkpoint
from imago.runs.run_directory import RunDirectory
from imago.statistics.intervals import wilson_interval

log = logging.getLogger(__name__)


class RunSummary(Callback):
    """Keeps the log to rank 0 and updates `summary.json` after training and after the test.

    Args:
        folder: of the run; travels to the ranks that ddp_spawn starts.
    """

    def __init__(self, folder: RunDirectory) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            logging.getLogger("imago").setLevel(logging.ERROR)
        elif not self.folder.log_is_open():  # a spawned process starts without
            self.folder.open_log()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.update(**_training_facts(trainer))
            for stopper in trainer.early_stopping_callbacks:
                if stopper.stopped_epoch:
                    log.info("stopped early: %s", stopper.stopping_reason_message)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.update(test=_test_facts(trainer))
            if speed := _speed(trainer):
                times = self.folder.summary.get("time_s", {}) | {"test": round(speed.test_s, 2)}
                self.folder.update(time_s=times)


def _training_facts(trainer: Trainer) -> dict[str, Any]:
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    # Lightning counts an epoch that `trainer.max_time` cut short; the resumed run still has to finish it.
    epochs = progress.processed // max(1, int(trainer.num_training_batches))
    facts: dict[str, Any] = {"epochs": epochs, "steps": trainer.global_step}
    monitoring = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    if monitoring and monitoring[0].best_model_score is not None:
        facts["val"] = _validation_facts(trainer, float(monitoring[0].best_model_score))
        best = read_checkpoint(Path(monitoring[0].best_model_path))
        facts["best_epoch"] = best["epoch"] + 1  # counted from 1, as on screen
    speed = _speed(trainer)
    if speed and speed.train_s:
        facts |= _speed_facts(trainer, speed)
    return facts


def _speed(trainer: Trainer) -> Speed | None:
    return next((c for c in trainer.callbacks if isinstance(c, Speed)), None)  # type: ignore[attr-defined]


def _speed_facts(trainer: Trainer, speed: Speed) -> dict[str, Any]:
    share = speed.wait_s / speed.train_s
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # of our data module
    cache = data.cache if isinstance(data, FileDataModule) and not data.keeps_decoded else None
    num_workers = trainer.train_dataloader.num_workers  # type: ignore[union-attr]  # of our loader
    is_cpu = trainer.strategy.root_device.type == "cpu"
    num_cores = 0 if is_cpu else max(1, available_cores() // trainer.num_devices)
    advice = data_wait_advice_for(share, cache, data.augment, num_workers, num_cores)
    times = {"train": speed.train_s - speed.wait_s, "data_wait": speed.wait_s, "val": speed.val_s}
    facts = {
        "images_per_s": round(speed.num_images / speed.train_s, 1),
        "data_wait_share": round(share, 4),
        "time_s": {name: round(seconds, 2) for name, seconds in times.items()},
    }
    return facts | ({"data_wait_advice": advice} if advice else {})


def _validation_facts(trainer: Trainer, acc: float) -> dict[str, Any]:
    """The best validation accuracy; with its interval where the whole split was used."""
    facts: dict[str, Any] = {"acc": round(acc, 6)}
    if isinstance(trainer.limit_val_batches, float) and trainer.limit_val_batches == 1.0:  # the int 1 is one batch
        count = len(trainer.datamodule.splits.val)  # type: ignore[attr-defined]  # of our data module
        facts |= {"interval_95": list(wilson_interval(round(acc * count), count)), "num_images": count}
    return facts


def _test_facts(trainer: Trainer) -> dict[str, Any]:
    metrics = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    count = round(metrics["num_images"])
    num_right = round(metrics["acc"] * count)
    tta = getattr(trainer.lightning_module, "tta", "none")
    return {
        "acc": num_right / count,
        "interval_95": list(wilson_interval(num_right, count)),
        "loss": metrics["loss"],
        "num_images": count,
        "num_left_out": len(trainer.datamodule.splits.test) - count,  # type: ignore[attr-defined]  # of our data module
        **({"tta": tta} if tta != "none" else {}),
    }
