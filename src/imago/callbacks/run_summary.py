"""Write the results of training and test to `summary.json`, in rank 0, which may be a forked process."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from imago.callbacks.checkpoints import BestCheckpoint
from imago.callbacks.monitoring import Speed
from imago.callbacks.train_metrics import num_steps_done
from imago.data.sampling import limited_batches
from imago.resources import available_cores
from imago.runs.checkpoint import read_checkpoint
from imago.runs.run_directory import RunDirectory
from imago.statistics.groups import alike_groups_interval
from imago.statistics.intervals import wilson_interval
from imago.task.base import ImageTask

log = logging.getLogger(__name__)

_DECODED_PX = 256  # leaves room for random crops to 224 px, the size that most networks are trained at
_MAX_WAIT_SHARE = 0.1  # of the training time: above it the summary advises what to change; our own choice


class RunSummary(Callback):
    """Log in rank 0 only, and update `summary.json` of a run directory after training and after the test."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            logging.getLogger("imago").setLevel(logging.ERROR)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for stopper in trainer.early_stopping_callbacks:
            stopper.stopping_reason_message = None  # of an interrupted run, from its checkpoint

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget_replaced_results(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget_replaced_results(trainer)
        if trainer.is_global_zero:
            self.directory.update(**_training_results(trainer), stopped_early=_stopped_early(trainer))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Test values are logged at the last step, also by forked processes, which have not trained.
        trainer.fit_loop.epoch_loop._batches_that_stepped = self.directory.summary.get("steps", 0)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            results = _test_results(trainer)
            if speed := _find_speed(trainer):
                results["time_s"] = self.directory.summary.get("time_s", {}) | {"test": round(speed.test_s, 2)}
            self.directory.update(**results)

    def _forget_replaced_results(self, trainer: Trainer) -> None:
        """Forget the results of weights that a resumed run has replaced: it may end before its own test.

        Without a best checkpoint the last weights are tested.
        """
        if not trainer.is_global_zero:
            return
        summary, best = self.directory.summary, _best_score(trainer)
        name, value = ("steps", num_steps_done(trainer)) if best is None else ("best_value", best)
        if summary.get(name) != value:
            self.directory.forget(("val", "test", "best_epoch", "best_value"))


def _stopped_early(trainer: Trainer) -> dict[str, Any] | None:
    """Log why early stopping ended the training; return what it monitors, and its patience if that was exhausted."""
    for stopper in trainer.early_stopping_callbacks:
        if stopper.stopping_reason_message:
            log.info("stopped early: %s", stopper.stopping_reason_message)
            is_exhausted = stopper.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
            return {"monitor": stopper.monitor, "patience": stopper.patience if is_exhausted else None}
    return None


def _best_score(trainer: Trainer) -> float | None:
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    return float(best.best_model_score) if best and best.best_model_score is not None else None


def _find_speed(trainer: Trainer) -> Speed | None:
    return next((c for c in trainer.callbacks if isinstance(c, Speed)), None)  # type: ignore[attr-defined]


def _training_results(trainer: Trainer) -> dict[str, Any]:
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    # Lightning counts an epoch that `trainer.max_time` ended early; the resumed run still has to complete it.
    epochs = progress.processed // max(1, int(trainer.num_training_batches))
    results: dict[str, Any] = {"epochs": epochs, "steps": num_steps_done(trainer)}
    results["num_train_images"] = len(trainer.datamodule.splits.train)  # type: ignore[attr-defined]  # of our data module
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    if best and best.best_model_path:
        results["val"] = {name: round(value, 6) for name, value in _of_split("val", best.best_metrics).items()}
        results["val"] |= {"monitor": best.monitor}
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # of our own
        num_images = len(data.splits.val)
        num_batches = math.ceil(num_images / (data.batch_size * trainer.world_size))
        if limited_batches(num_batches, trainer.limit_val_batches) == num_batches:
            results["val"] |= _interval(trainer, results["val"], num_images, "val") | {"num_images": num_images}
        epoch = read_checkpoint(Path(best.best_model_path))["epoch"]
        results["best_value"] = float(best.best_model_score)  # type: ignore[arg-type]  # set with the path
        results["best_epoch"] = epoch + 1  # counted from 1, as on the screen
    speed = _find_speed(trainer)
    return results | (_speed_results(trainer, speed) if speed and speed.train_s else {})


def _test_results(trainer: Trainer) -> dict[str, Any]:
    results: dict[str, Any] = _of_split("test", trainer.callback_metrics)
    if "num_images" in results:  # of an `ImageTask`
        num_images = round(results["num_images"])
        num_all = len(trainer.datamodule.splits.test)  # type: ignore[attr-defined]  # of our data module
        results |= {"num_images": num_images, "num_left_out": num_all - num_images}
        results |= _interval(trainer, results, num_images, "test")
        if trainer.lightning_module.hparams["predicts_classes"]:  # Lightning logs float32: make the share exact again
            results["acc"] = round(results["acc"] * num_images) / num_images
    tta = getattr(trainer.lightning_module, "tta", "none")
    return {"test": results | ({"tta": tta} if tta != "none" else {})}


def _of_split(split: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that were logged as SPLIT/NAME or, by other tasks, as SPLIT_NAME, by NAME."""
    prefixes = (f"{split}/", f"{split}_")
    return {name[len(split) + 1 :]: float(value) for name, value in metrics.items() if name.startswith(prefixes)}


def _interval(trainer: Trainer, results: Mapping[str, float], num_images: int, split: str) -> dict[str, Any]:
    """Return the interval of the accuracy; {} if there is none, or if the task may compute something else.

    With groups it is the widest possible, as it is not known here which images are correct; `eval.py` narrows it.
    """
    if not isinstance(trainer.lightning_module, ImageTask) or "acc" not in results:
        return {}
    groups = getattr(trainer.datamodule.splits, split).groups  # type: ignore[attr-defined]  # of our data module
    if groups is not None:
        interval: Any = list(alike_groups_interval(results["acc"], groups))
        return {"interval_95": interval, "num_groups": len(np.unique(groups))}
    return {"interval_95": list(wilson_interval(round(results["acc"] * num_images), num_images))}


def _speed_results(trainer: Trainer, speed: Speed) -> dict[str, Any]:
    share = speed.wait_s / speed.train_s
    times = {"train": speed.train_s - speed.wait_s, "data_wait": speed.wait_s, "val": speed.val_s}
    results: dict[str, Any] = {
        "images_per_s": round(speed.num_images / speed.train_s, 1),
        "data_wait_share": round(share, 4),
        "time_s": {name: round(seconds, 2) for name, seconds in times.items()},
    }
    device_splits = getattr(trainer.datamodule, "device_splits", None)  # type: ignore[attr-defined]  # of our own
    if share > _MAX_WAIT_SHARE and not (device_splits and device_splits.are_used):
        is_cpu = trainer.strategy.root_device.type == "cpu"
        num_cores = 0 if is_cpu else max(1, available_cores() // trainer.num_devices)
        num_workers = trainer.train_dataloader.num_workers  # type: ignore[union-attr]  # of our loader
        results["data_wait_advice"] = data_wait_advice(trainer.datamodule, num_workers, num_cores)  # type: ignore[attr-defined]
    return results


def data_wait_advice(data: Any, num_workers: int, num_cores: int) -> str:
    """Return the settings that would reduce the time spent waiting for data, the most effective first.

    Args:
        data: the data module; one without `is_cached` holds its images in memory.
        num_workers: present number of loader workers.
        num_cores: CPU cores that this process can use for data; 0 if the network is trained on the CPU.
    """
    changes = []
    if not getattr(data, "is_cached", True):
        if data.cache == "none":
            changes.append("data.cache=auto")
        elif data.augment.random_resized_crop_scale is not None:  # whole images were too large for the cache
            changes.append(f"data.decoded_px={_DECODED_PX} data.cache=auto")
    if num_workers < num_cores:
        changes.append(f"data.num_workers={num_cores}")
    return " or ".join(changes) or "fewer augmentations or a smaller preprocess.size (both change the result)"
