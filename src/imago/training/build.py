"""Build the data module, the task and the Trainer from the settings."""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from imago.callbacks.exact_resume import KeepSettings, ResumedStateCheck
from imago.callbacks.mean_gradient import MeanGradient
from imago.callbacks.own_epoch import OwnEpoch
from imago.callbacks.run_summary import RunSummary
from imago.callbacks.stopping import StepLimit, StopOnSignal, TimeLimit, call_on_exception_in_forked_ranks, watch_ranks
from imago.callbacks.train_metrics import TrainMetrics
from imago.data.datamodule import ImageDataModule
from imago.errors import ConfigError
from imago.inference.find_model import resolve_checkpoint
from imago.instantiate import build, full_name, to_plain
from imago.logger.wandb_id import wandb_id
from imago.model.adapt import choose_memory_format, choose_preprocess, weights_preprocess
from imago.model.classifier import Classifier
from imago.paths import checkpoint_file
from imago.runs.checkpoint import AtomicCheckpointIO, check_free_space, check_loadable
from imago.runs.run_directory import RunDirectory
from imago.settings import typed_value
from imago.task.base import ImageTask
from imago.task.optimization import count_steps
from imago.training.loopback import bind_to_loopback
from imago.training.nodes import check_nodes
from imago.training.other_task import (
    ScheduleIntervalCheck,
    build_other_task,
    count_steps_per_epoch,
    is_image_task,
    unsavable_hyperparameters,
)
from imago.training.pruning import PrunedNetwork, choose_pruned_preprocess
from imago.training.run_checks import check_loss, check_num_batches, check_split_sizes, warn_of_text_order
from imago.training.teacher import load_teacher_run, prepare_teacher
from imago.trust import without_files

log = logging.getLogger(__name__)

_REFUSED_CALLBACKS = {
    "GradientAccumulationScheduler": "trainer.accumulate_grad_batches=N",
    "LearningRateFinder": "tune=lr, and then the suggested optimizer.lr",
    "BatchSizeFinder": "data.batch_size=N",
}
_LOG_EVERY_N_STEPS, _MIN_POINTS_PER_EPOCH = 20, 5  # of trainer.log_every_n_steps=null; our own choices
_STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


def build_task(
    cfg: DictConfig,
    data: ImageDataModule,
    teacher_run: Classifier | None = None,
    pruned: PrunedNetwork | None = None,
) -> LightningModule:
    """Build the task for the classes and the preprocess record of `data`.

    `teacher_run` is the trained network of `task.teacher`, if that is a run, and `pruned` that of `model=pruned`.

    Raises:
        ConfigError: if the teacher has other classes, or a hyperparameter cannot be stored in a checkpoint.
    """
    settings = pruned.settings if pruned else to_plain(cfg.model)
    task = _build_image_task(cfg, data, settings, teacher_run) if is_image_task(cfg) else build_other_task(cfg, data)
    net: Any = getattr(task, "net", task)
    if pruned and pruned.net:
        net.load_state_dict(pruned.net.state_dict())
    is_fast = cfg.channels_last and isinstance(task, ImageTask)  # other modules may use `view`
    data.memory_format = choose_memory_format(net, data.preprocess.size) if is_fast else torch.contiguous_format
    net.to(memory_format=data.memory_format)
    starts_from_random = cfg.resume is None and not pruned and cfg.model.get("weights") is None
    if starts_from_random and hasattr(net, "initialize_from"):
        images, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        net.initialize_from(images)  # the first training batch, the same one on every rank
    if cfg.compile:
        # In place, so the keys of the state_dict do not change; once for each shape of the images.
        net.compile(mode=cfg.compile if isinstance(cfg.compile, str) else None, dynamic=False)
    for key, neutral in {"accumulate_grad_batches": 1, "gradient_clip_val": None}.items():
        if not task.automatic_optimization and cfg.trainer[key] != neutral:
            raise ConfigError(
                f"trainer.{key}={cfg.trainer[key]}: {type(task).__name__} steps its optimizers itself (manual "
                "optimization), so it has to do this, too; remove the setting."
            )
    return task


def _build_image_task(
    cfg: DictConfig, data: ImageDataModule, settings: dict[str, Any], teacher_run: Classifier | None
) -> ImageTask:
    arguments: dict[str, Any] = {
        "net": settings,
        "class_names": list(data.class_names),
        "class_counts": np.bincount(data.splits.train.labels, minlength=len(data.class_names)).tolist(),
        "preprocess": data.preprocess.to_dict(),
    }
    if cfg.task.get("teacher"):
        arguments["teacher"] = prepare_teacher(cfg, teacher_run, data)
    if cfg.resume is not None:  # the checkpoint holds all weights, and the files may be gone
        arguments["net"] = without_files(arguments["net"], Path(cfg.resume))
    task: ImageTask = build(cfg.task, _recursive_=False, **arguments)  # it builds its parts itself
    check_loadable(task.hparams)
    check_loss(str(cfg.loss._target_), task, data)
    task.tta = cfg.tta
    return task


def build_trainer(cfg: DictConfig, precision: str, directory: RunDirectory, task: LightningModule) -> Trainer:
    """Build the callbacks, the loggers and the Trainer.

    Raises:
        ConfigError: if Lightning refuses the combination of settings.
    """
    if left_out := unsavable_hyperparameters(task):
        log.info("left out of the checkpoints, as they are not plain data: %s", ", ".join(left_out))
    callbacks = _build_callbacks(cfg, directory)
    needing = [f"compile={typed_value(cfg.compile)}"] if cfg.compile else []
    needing += [type(callback).__name__ for callback in callbacks if getattr(callback, "needs_net", False)]
    if needing and not hasattr(task, "net"):
        raise ConfigError(
            f"{needing[0]} needs a task with the attribute `net`, its network; {type(task).__name__} has none."
        )
    has_checkpoints = any(isinstance(callback, Checkpoint) for callback in callbacks)
    if not has_checkpoints and not cfg.tune:
        log.warning("no callback saves checkpoints: this run cannot be resumed, evaluated or exported")
    loggers = [node for node in cfg.logger.values() if node is not None]
    plugins = to_plain(cfg.trainer.get("plugins")) or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    arguments: dict[str, Any] = {
        "precision": precision,
        "callbacks": callbacks,
        "logger": [build(node, base=Logger, **wandb_id(node, directory.path)) for node in loggers],
        "plugins": [
            AtomicCheckpointIO(full_name(type(task)), left_out, directory.link_latest),
            *(build(part) if isinstance(part, dict) else part for part in plugins),
        ],
        "default_root_dir": cfg.paths.run_dir,
        "enable_checkpointing": has_checkpoints,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks)
        or cfg.trainer.get("enable_progress_bar", True),
        "use_distributed_sampler": False,  # our samplers shard by rank without padding
        "overfit_batches": 0,  # see `set_batch_limits`: Lightning would reorder batches and limit validation, too
    }
    with one_line_for_misconfiguration((MisconfigurationException, ValueError)):
        trainer: Trainer = build(cfg.trainer, base=Trainer, **arguments)
    _skip_empty_hooks(trainer.callbacks)  # type: ignore[attr-defined]
    directory.signals.launcher = trainer.strategy.launcher
    call_on_exception_in_forked_ranks(trainer)
    watch_ranks(trainer, directory)
    bind_to_loopback(trainer)
    return trainer


def _skip_empty_hooks(callbacks: Sequence[Callback]) -> None:
    """Hide the hooks of a step that a callback inherits from `Callback`, where they do nothing.

    Lightning calls whatever is callable, with its profiler around it: about 80 calls for each step, 0.2 ms.
    """
    for callback in callbacks:
        for name in _STEP_HOOKS:
            if getattr(type(callback), name) is getattr(Callback, name) and name not in vars(callback):
                setattr(callback, name, None)


@contextmanager
def one_line_for_misconfiguration(kinds: Any = MisconfigurationException) -> Iterator[None]:
    """Convert errors that Lightning raises for settings, of these classes, to a ConfigError."""
    try:
        yield
    except kinds as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def _build_callbacks(cfg: DictConfig, directory: RunDirectory) -> list[Callback]:
    """Build the configured callbacks, and those that every run has.

    The order matters: values of a batch are logged before the configured callbacks read them, and a signal stops the
    run after all of them have seen the batch.
    """
    settings = {str(name): to_plain(node) for name, node in cfg.callbacks.items() if node is not None}
    named = {name: build(cfg.callbacks[name], base=Callback) for name in settings}
    callbacks = [KeepSettings(named, settings), *named.values()]
    kinds = {kind.__name__ for callback in callbacks for kind in type(callback).__mro__}
    if refused := sorted(kinds & _REFUSED_CALLBACKS.keys()):
        remedy = _REFUSED_CALLBACKS[refused[0]]
        raise ConfigError(f"callbacks: {refused[0]} would train beside the schedule; type {remedy}.")
    callbacks += [part for callback in callbacks if (part := getattr(callback, "top_checkpoints", None))]
    if cfg.trainer.max_time is not None:
        callbacks.append(TimeLimit(to_plain(cfg.trainer.max_time)))
    if cfg.trainer.get("max_steps", -1) > 0:
        callbacks.append(StepLimit(cfg.trainer.max_steps))
    for callback in callbacks:
        if isinstance(callback, ProgressBar) and not cfg.trainer.get("enable_progress_bar", True):
            callback.disable()  # the line per epoch is still logged
    return [
        ResumedStateCheck(),
        MeanGradient(),
        TrainMetrics(),
        ScheduleIntervalCheck(),
        *callbacks,
        OwnEpoch(),
        RunSummary(directory),
        StopOnSignal(directory),
    ]


def build_run(
    cfg: DictConfig, precision: str, directory: RunDirectory, pruned: PrunedNetwork | None = None
) -> tuple[ImageDataModule, LightningModule, Trainer, str]:
    """Build data module, task and Trainer, in the order that determines the initial weights.

    `pruned` is the network of `model=pruned`. Also return where the preprocess record comes from, for the start table.
    """
    _silence_lightning()
    teacher_run = load_teacher_run(cfg) if cfg.task.get("teacher") else None
    seed_everything(cfg.seed, verbose=False)  # for the initial weights; all later randomness is counter-based
    data: ImageDataModule = build(cfg.data, base=ImageDataModule, _recursive_=False)
    data.set_up_data()
    if cfg.trainer.get("overfit_batches"):
        data.repeats_first_epoch = True
    check_num_batches(cfg, data)
    warn_of_text_order(data.class_names)
    if pruned:
        data.preprocess, origin = choose_pruned_preprocess(cfg, pruned, data)
    else:
        data.preprocess, origin = choose_preprocess(to_plain(cfg.preprocess), _weights_preprocess(cfg), data.preprocess)
    task = build_task(cfg, data, teacher_run, pruned)
    check_free_space(directory.path, task)
    steps_per_epoch = count_steps_per_epoch(cfg, data)
    if cfg.trainer.log_every_n_steps is None:
        cfg.trainer.log_every_n_steps = min(_LOG_EVERY_N_STEPS, max(1, steps_per_epoch // _MIN_POINTS_PER_EPOCH))
    trainer = build_trainer(cfg, precision, directory, task)
    check_split_sizes(data, trainer.world_size)
    data.place_images(trainer.strategy.root_device)
    if isinstance(task, ImageTask):
        task.steps_per_epoch = steps_per_epoch
    # Epochs until max_epochs or max_steps is reached.
    total_steps = count_steps(steps_per_epoch, trainer.max_epochs, trainer.max_steps)
    trainer.fit_loop.max_epochs = math.ceil(total_steps / steps_per_epoch)
    check_nodes(cfg, data, trainer, directory)
    return data, task, trainer, origin


def final_checkpoint(run_dir: Path) -> str | None:
    """Return the best checkpoint; if there is none, warn that the last weights are tested and return None."""
    best = checkpoint_file(run_dir)
    if best.is_file():
        return str(best)
    log.warning("no best checkpoint was saved: testing the last weights")
    return None


def _weights_preprocess(cfg: DictConfig) -> Mapping[str, Any] | None:
    """Return the record that the pretrained weights need; None if it is unknown."""
    settings = to_plain(cfg.model)
    if cfg.resume is not None and str(settings.get("weights")).endswith(".ckpt"):
        # The run's own checkpoint has the record too, and the file of the pretrained weights may be gone.
        settings["weights"] = str(resolve_checkpoint(Path(cfg.resume), "last"))
    return weights_preprocess(settings)


def _silence_lightning() -> None:
    """Hide messages of Lightning that do not apply to this run."""
    for text in (
        ".*does not have many workers.*",  # images in memory are read fastest without workers
        ".*smaller than the logging interval.*",  # epoch values are logged all the same
        ".*exists and is not empty.*",  # a resumed run continues in place
        ".*Checkpoint directory.*",
        ".*treespec, LeafSpec.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", text)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
