"""The body of a training run: build what the settings name, fit, test, and write down what came out."""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from imago.analysis.interval import wilson_interval
from imago.callbacks.speed import Speed
from imago.checkpoint import AtomicCheckpointIO, read_checkpoint
from imago.data.datamodule import ImageDataModule
from imago.run.fast_path import choose_precision
from imago.run.folder import RunFolder
from imago.run.load import checkpoint_path
from imago.run.preprocess import decide_preprocess
from imago.run.screen import end_lines, short_path, start_table
from imago.targets import build
from imago.task.classify import ClassifyTask

log = logging.getLogger(__name__)


def fit_and_test(cfg: DictConfig, folder: RunFolder) -> float:
    """Run from the data to the test accuracy; gives the best validation accuracy, in [0, 1]."""
    silence_lightning()
    seed_everything(cfg.seed, verbose=False)  # the first weights; everything later is keyed
    data, preprocess_note = build_data(cfg)
    task = build_task(cfg, data)
    precision, precision_note = choose_precision(str(cfg.trainer.precision), cfg.trainer.accelerator)
    trainer = build_trainer(cfg, precision)
    batches = data.batches_per_epoch(trainer.limit_train_batches)
    task.steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    notes = {"preprocess": preprocess_note, "precision": precision_note, "folder": short_path(folder.path)}
    log.info("%s\n", start_table(cfg, data, task, trainer, notes))
    folder.provenance_facts(device=str(trainer.strategy.root_device), precision=precision, data=data.fingerprint())

    trainer.fit(task, datamodule=data, ckpt_path=_resume_path(cfg, folder))
    folder.update(**_training_facts(trainer))
    trainer.test(task, datamodule=data, ckpt_path=_final_checkpoint(trainer), verbose=False)
    folder.update(test=_test_facts(trainer))
    log.info("\n%s", end_lines(folder.summary, folder.path))
    return folder.summary.get("val", {}).get("acc", float("nan"))


def build_data(cfg: DictConfig) -> tuple[ImageDataModule, str]:
    """Build the data module, read the data, and settle the preprocess record; gives its origin in words too."""
    data: ImageDataModule = build(cfg.data, extra_targets=cfg.extra_targets)
    data.set_up_data()
    typed: Any = OmegaConf.to_container(cfg.preprocess)
    data.preprocess, note = decide_preprocess(typed, data.preprocess)
    return data, note


def build_task(cfg: DictConfig, data: ImageDataModule) -> ClassifyTask:
    """Build the task for the classes and the preprocess record of `data`."""
    facts = {"class_names": list(data.class_names), "preprocess": data.preprocess.to_dict()}
    task: ClassifyTask = build(cfg.task, extra_targets=cfg.extra_targets, **facts)
    if cfg.channels_last:
        task.net.to(memory_format=torch.channels_last)
    return task


def build_trainer(cfg: DictConfig, precision: str) -> Trainer:
    """Build callbacks, loggers and the Trainer around them."""
    extra = cfg.extra_targets
    callbacks = [build(part, extra_targets=extra) for part in cfg.callbacks.values() if part is not None]
    loggers = [build(part, extra_targets=extra) for part in cfg.logger.values() if part is not None]
    return build(
        cfg.trainer,
        extra_targets=extra,
        precision=precision,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=cfg.paths.run_dir,
        use_distributed_sampler=False,  # our samplers share out by rank themselves, without padding
    )


def silence_lightning() -> None:
    """Drop the notices that say nothing about this run; real warnings stay."""
    for text in (
        ".*does not have many workers.*",  # pictures in memory are fastest without
        ".*smaller than the logging interval.*",  # epoch values are logged all the same
        ".*exists and is not empty.*",  # a resumed run continues in place
        ".*Checkpoint directory.*",
    ):
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


def _resume_path(cfg: DictConfig, folder: RunFolder) -> str | None:
    return str(checkpoint_path(folder.path, "last")) if cfg.resume is not None else None


def _monitored(trainer: Trainer) -> ModelCheckpoint | None:
    found = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    return found[0] if found else None


def _final_checkpoint(trainer: Trainer) -> str | None:
    """Give the best checkpoint; without one, say loudly that the last weights are tested."""
    best = _monitored(trainer)
    if best is not None and best.best_model_path:
        return best.best_model_path
    log.warning("no best checkpoint (no validation, or callbacks.best_checkpoint=null): the last weights are tested")
    return None


def _training_facts(trainer: Trainer) -> dict[str, Any]:
    facts: dict[str, Any] = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
    best = _monitored(trainer)
    if best is not None and best.best_model_score is not None:
        facts["val"] = {"acc": round(float(best.best_model_score), 6)}
        facts["best_epoch"] = read_checkpoint(Path(best.best_model_path))["epoch"] + 1  # counted from 1, as on screen
    speed = next((callback for callback in trainer.callbacks if isinstance(callback, Speed)), None)  # type: ignore[attr-defined]
    if speed is not None and speed.train_s:
        facts["images_per_s"] = round(speed.num_images / speed.train_s, 1)
        facts["data_wait_share"] = round(speed.wait_s / speed.train_s, 4)
    return facts


def _test_facts(trainer: Trainer) -> dict[str, Any]:
    metrics = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    count = round(metrics["num_images"])
    num_right = round(metrics["acc"] * count)
    return {
        "acc": num_right / count,
        "interval_95": list(wilson_interval(num_right, count)),
        "loss": metrics["loss"],
        "num_images": count,
    }
