"""The body of a training run: build what the settings name, fit, test, and write down what came out."""

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from imago.checkpoint import AtomicCheckpointIO
from imago.data.datamodule import ImageDataModule
from imago.errors import ConfigError
from imago.run.best_epoch import describe_best
from imago.run.devices import check_batch_size, count_devices, share_cores
from imago.run.fast_path import choose_precision
from imago.run.folder import RunFolder
from imago.run.load import checkpoint_path
from imago.run.preprocess import decide_preprocess
from imago.run.reporter import Reporter
from imago.run.screen import end_lines, short_path, start_table
from imago.targets import build
from imago.task.classify import ClassifyTask

log = logging.getLogger(__name__)


def fit_and_test(cfg: DictConfig, folder: RunFolder) -> float:
    """Run from the data to the test accuracy; gives the best validation accuracy, in [0, 1]."""
    silence_lightning()
    num_devices = count_devices(cfg.trainer.accelerator, cfg.trainer.devices)
    check_batch_size(cfg.data.batch_size, num_devices * cfg.trainer.num_nodes)
    share_cores(cfg.trainer.accelerator, num_devices)
    precision, precision_note = choose_precision(str(cfg.trainer.precision), cfg.trainer.accelerator)
    seed_everything(cfg.seed, verbose=False)  # the first weights; everything later is keyed
    network = _network_class(cfg.model)
    if cfg.resume is None and hasattr(network, "find_weights"):
        network.find_weights(cfg.model.name, cfg.model.weights)  # told before an hour goes into reading data
    data, preprocess_note = build_data(cfg)
    task = build_task(cfg, data)
    trainer = build_trainer(cfg, precision, Reporter(folder))
    batches = data.batches_per_epoch(trainer.limit_train_batches)
    task.steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    notes = {"preprocess": preprocess_note, "precision": precision_note, "folder": short_path(folder.path)}
    log.info("%s\n", start_table(cfg, data, task, trainer, notes))
    folder.provenance_facts(device=str(trainer.strategy.root_device), precision=precision, data=data.fingerprint())
    if folder.is_main_process:
        data.write_down(folder.path)
    num_epochs = cfg.trainer.max_epochs * batches / data.batches_per_epoch()
    log.info("decoded pictures kept %s\n", data.keep_decoded(num_devices, num_epochs))

    trainer.fit(task, datamodule=data, ckpt_path=_resume_path(cfg, folder))
    folder.reload()  # rank 0 wrote the numbers, which ddp_spawn and ddp_fork run in a process of its own
    trainer.test(task, datamodule=data, ckpt_path=_final_checkpoint(folder), verbose=False)
    folder.reload()
    describe_best(cfg, data, trainer, folder, step=folder.summary.get("best_epoch", 0) * task.steps_per_epoch)
    log.info("\n%s", end_lines(folder.summary, folder.path))
    return folder.summary.get("val", {}).get("acc", float("nan"))


def build_data(cfg: DictConfig) -> tuple[ImageDataModule, str]:
    """Build the data module, read the data, and settle the preprocess record; gives its origin in words too."""
    data: ImageDataModule = build(cfg.data, extra_targets=cfg.extra_targets)
    data.set_up_data()
    typed: Any = OmegaConf.to_container(cfg.preprocess)
    data.preprocess, note = decide_preprocess(typed, _weights_preprocess(cfg.model), data.preprocess)
    return data, note


def _network_class(model: DictConfig) -> Any:
    """Give the class that a network is of; None if there is no such class, which `build` explains better."""
    try:
        return get_class(model._target_)
    except (ImportError, ValueError, InstantiationException):
        return None


def _weights_preprocess(model: DictConfig) -> Mapping[str, Any] | None:
    """Ask the network's class what its pretrained weights expect; most classes have none."""
    ask = getattr(_network_class(model), "weights_preprocess", None)
    return ask(model.name, model.weights) if ask else None


def build_task(cfg: DictConfig, data: ImageDataModule) -> ClassifyTask:
    """Build the task for the classes and the preprocess record of `data`."""
    facts = {"class_names": list(data.class_names), "preprocess": data.preprocess.to_dict()}
    counts = np.bincount(data.splits.train.labels, minlength=len(data.class_names)).tolist()
    net: Any = OmegaConf.to_container(cfg.model, resolve=True)
    if cfg.resume is not None and "weights" in net:
        net["weights"] = None  # the checkpoint has them all, and the file may be gone
    task: ClassifyTask = build(cfg.task, extra_targets=cfg.extra_targets, net=net, class_counts=counts, **facts)
    if cfg.channels_last:
        task.net.to(memory_format=torch.channels_last)
    return task


def build_trainer(cfg: DictConfig, precision: str, reporter: Reporter) -> Trainer:
    """Build callbacks, loggers and the Trainer around them."""
    extra = cfg.extra_targets
    callbacks = [build(part, extra_targets=extra) for part in cfg.callbacks.values() if part is not None]
    loggers = [build(part, extra_targets=extra) for part in cfg.logger.values() if part is not None]
    facts: dict[str, Any] = {
        "precision": precision,
        "callbacks": [*callbacks, reporter],
        "logger": loggers,
        "plugins": [AtomicCheckpointIO()],
        "default_root_dir": cfg.paths.run_dir,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "use_distributed_sampler": False,  # our samplers share out by rank themselves, without padding
    }
    try:
        return build(cfg.trainer, extra_targets=extra, **facts)
    except (MisconfigurationException, ValueError) as error:  # Lightning's word on a combination of settings
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def silence_lightning() -> None:
    """Drop the notices that say nothing about this run; real warnings stay."""
    for text in (
        ".*does not have many workers.*",  # pictures in memory are fastest without
        ".*smaller than the logging interval.*",  # epoch values are logged all the same
        ".*exists and is not empty.*",  # a resumed run continues in place
        ".*Checkpoint directory.*",
        ".*treespec, LeafSpec.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", text)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _resume_path(cfg: DictConfig, folder: RunFolder) -> str | None:
    return str(checkpoint_path(folder.path, "last")) if cfg.resume is not None else None


def _final_checkpoint(folder: RunFolder) -> str | None:
    """Give the best checkpoint; without one, say loudly that the last weights are tested."""
    best = folder.path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return str(best)
    log.warning("no best checkpoint (no validation, or callbacks.best_checkpoint=null): the last weights are tested")
    return None
