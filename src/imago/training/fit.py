"""The body of a training run: build what the settings name, fit, test, and write down what came out."""

import logging
import math
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from imago.callbacks.run_summary import RunSummary
from imago.callbacks.stop_on_signal import StopOnSignal, call_on_exception_in_forked_ranks
from imago.callbacks.time_limit import TimeLimit
from imago.data.datamodule import ImageDataModule
from imago.errors import ConfigError
from imago.inference.load import check_continues, checkpoint_path
from imago.instantiate import build, find_target
from imago.model.classifier import Classifier
from imago.model.weights import read_weights
from imago.paths import short_path
from imago.runs.checkpoint import AtomicCheckpointIO, check_free_space, check_plain
from imago.runs.run_directory import RunDirectory
from imago.task.classification import ClassificationTask
from imago.task.optimization import check_optimization
from imago.training.best_epoch import describe_best
from imago.training.console import end_lines, start_table
from imago.training.devices import check_batch_size, count_devices, share_cores
from imago.training.precision import check_compile, choose_precision
from imago.training.preprocess import decide_preprocess
from imago.training.teacher import load_run, prepare_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a training consists of; `notes` say for the start table where choices come from."""

    data: ImageDataModule
    task: ClassificationTask
    trainer: Trainer
    notes: dict[str, str]


def fit_and_test(cfg: DictConfig, folder: RunDirectory) -> float:
    """Run from the data to the test accuracy; gives the best validation accuracy, in [0, 1]."""
    parts = set_up(cfg, folder)
    data, task, trainer = parts.data, parts.task, parts.trainer
    log.info("%s\n", start_table(cfg, data, task, trainer, parts.notes))
    device = str(trainer.strategy.root_device)
    folder.add_provenance(device=device, precision=trainer.precision, data=data.fingerprint())
    if folder.is_main_process:
        data.write_split(folder.path)
    num_epochs = cfg.trainer.max_epochs * data.batches_per_epoch(trainer.limit_train_batches) / data.batches_per_epoch()
    log.info("decoded images kept %s\n", data.keep_decoded(trainer.num_devices, num_epochs))

    trainer.fit(task, datamodule=data, ckpt_path=_resume_path(cfg, folder, task))
    folder.signals.raise_if_received()
    folder.reload()  # rank 0 wrote the results, with ddp_fork in another process
    # Compiling once more, for fp32, would take longer than the test.
    with torch.compiler.set_stance("force_eager") if cfg.compile else nullcontext():
        trainer.test(task, datamodule=data, ckpt_path=_final_checkpoint(folder), verbose=False)
    folder.reload()
    describe_best(cfg, data, trainer, folder, step=folder.summary.get("best_epoch", 0) * (task.steps_per_epoch or 0))
    log.info("\n%s", end_lines(folder.summary, folder.path))
    return folder.summary.get("val", {}).get("acc", float("nan"))


def set_up(cfg: DictConfig, folder: RunDirectory) -> Parts:
    """Check the machine, read the data and build the task and the Trainer.

    Raises:
        UserError: for what the user can mend.
    """
    silence_lightning()
    num_devices = count_devices(cfg.trainer.accelerator, cfg.trainer.devices)
    check_batch_size(cfg.data.batch_size, num_devices * cfg.trainer.num_nodes)
    share_cores(cfg.trainer.accelerator, num_devices)
    precision, precision_note = choose_precision(str(cfg.trainer.precision), cfg.trainer.accelerator)
    if cfg.compile:
        check_compile()
    check_optimization(_plain(cfg.optimizer), cfg.schedule, cfg.extra_targets)
    run = load_run(cfg)
    seed_everything(cfg.seed, verbose=False)  # the first weights; everything later is keyed
    network = find_target(cfg.model._target_)
    if cfg.resume is None and "weights" in cfg.model and hasattr(network, "find_weights"):
        file = network.find_weights(cfg.model.get("name"), cfg.model.weights)
        if file is not None:
            read_weights(file)  # a damaged one is told before an hour goes into reading data
    data, preprocess_note = build_data(cfg)
    task = build_task(cfg, data, run)
    check_plain(task.hparams)
    check_free_space(folder.path, task)
    trainer = build_trainer(cfg, precision, RunSummary(folder))
    batches = data.batches_per_epoch(trainer.limit_train_batches)
    task.steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    notes = {"preprocess": preprocess_note, "precision": precision_note, "folder": short_path(folder.path)}
    return Parts(data, task, trainer, notes)


def build_data(cfg: DictConfig) -> tuple[ImageDataModule, str]:
    """Build the data module, read the data, and settle the preprocess record; gives its origin in words too."""
    data: ImageDataModule = build(cfg.data, extra_targets=cfg.extra_targets)
    data.set_up_data()
    typed: Any = OmegaConf.to_container(cfg.preprocess)
    data.preprocess, note = decide_preprocess(typed, _weights_preprocess(cfg), data.preprocess)
    return data, note


def _weights_preprocess(cfg: DictConfig) -> Mapping[str, Any] | None:
    """Ask the network's class what its pretrained weights expect; somebody's own may have no answer."""
    ask = getattr(find_target(cfg.model._target_), "weights_preprocess", None)
    weights = cfg.model.get("weights")
    if cfg.resume is not None and str(weights).endswith(".ckpt"):
        weights = str(checkpoint_path(Path(cfg.resume), "last"))  # has the record too, and the other may be gone
    return ask(cfg.model.get("name"), weights) if ask else None


def build_task(cfg: DictConfig, data: ImageDataModule, taught_by: Classifier | None = None) -> ClassificationTask:
    """Build the task for the classes and the preprocess record of `data`; `taught_by` is a run, for task=distillation.

    Raises:
        ConfigError: if the teacher knows other classes.
    """
    facts: dict[str, Any] = {"class_names": list(data.class_names), "preprocess": data.preprocess.to_dict()}
    if cfg.task.get("teacher"):
        facts["teacher"] = prepare_teacher(cfg, taught_by, data)
    counts = np.bincount(data.splits.train.labels, minlength=len(data.class_names)).tolist()
    net: Any = OmegaConf.to_container(cfg.model, resolve=True)
    if cfg.resume is not None and "weights" in net:
        net["weights"] = None  # the checkpoint has them all, and the file may be gone
    task: ClassificationTask = build(cfg.task, extra_targets=cfg.extra_targets, net=net, class_counts=counts, **facts)
    if cfg.channels_last:
        task.net.to(memory_format=torch.channels_last)
    if cfg.resume is None and cfg.model.get("weights") is None and hasattr(task.net, "initialize_from"):
        images, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        task.net.initialize_from(images)  # the first training batch, the same one on every rank
    if cfg.compile:
        task.net.compile()  # in place: the names of the weights stay as they are
    task.tta = cfg.tta
    return task


def build_trainer(cfg: DictConfig, precision: str, reporter: RunSummary) -> Trainer:
    """Build callbacks, loggers and the Trainer around them."""
    extra = cfg.extra_targets
    callbacks = [build(part, extra_targets=extra) for part in cfg.callbacks.values() if part is not None]
    if cfg.trainer.max_time is not None:
        callbacks.append(TimeLimit(_plain(cfg.trainer.max_time)))
    loggers = [build(part, extra_targets=extra) for part in cfg.logger.values() if part is not None]
    facts: dict[str, Any] = {
        "precision": precision,
        "callbacks": [*callbacks, reporter, StopOnSignal(reporter.directory)],
        "logger": loggers,
        "plugins": [AtomicCheckpointIO()],
        "default_root_dir": cfg.paths.run_dir,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "use_distributed_sampler": False,  # our samplers share out by rank themselves, without padding
    }
    try:
        trainer: Trainer = build(cfg.trainer, extra_targets=extra, **facts)
    except (MisconfigurationException, ValueError) as error:  # Lightning's word on a combination of settings
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    reporter.directory.signals.launcher = trainer.strategy.launcher
    call_on_exception_in_forked_ranks(trainer)
    return trainer


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def silence_lightning() -> None:
    """Drop the notices that say nothing about this run; real warnings stay."""
    for text in (
        ".*does not have many workers.*",  # images in memory are fastest without
        ".*smaller than the logging interval.*",  # epoch values are logged all the same
        ".*exists and is not empty.*",  # a resumed run continues in place
        ".*Checkpoint directory.*",
        ".*treespec, LeafSpec.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", text)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _resume_path(cfg: DictConfig, folder: RunDirectory, task: ClassificationTask) -> str | None:
    if cfg.resume is None:
        return None
    last = checkpoint_path(folder.path, "last")
    check_continues(last, task)
    return str(last)


def _final_checkpoint(folder: RunDirectory) -> str | None:
    """Give the best checkpoint; without one, say loudly that the last weights are tested."""
    best = folder.path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return str(best)
    log.warning("no best checkpoint (no validation, or callbacks.best_checkpoint=null): the last weights are tested")
    return None
