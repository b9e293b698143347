"""Train a network and test it once: settings, checks, run directory, data, task, trainer, fit, test, summary."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from imago.files import read_json
from imago.inference.find_model import resolve_checkpoint
from imago.instantiate import to_plain
from imago.resources import first_cpu_times
from imago.runs.run_directory import RunDirectory
from imago.text import counted
from imago.training.checks import check_settings, set_batch_limits
from imago.training.resume import check_run_directory, reached_limits, store_absolute_paths

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from imago.data.datamodule import ImageDataModule

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float:
    """Train and test as the settings say; everything is written to the run directory.

    Torch is imported only after the settings and the run directory are checked, so that errors are reported at once.

    Returns:
        What callbacks.best_checkpoint.monitor reached in validation at the best epoch, which a sweep optimizes; by
        default the accuracy, in [0, 1]. The test split is not used for selection.

    Raises:
        UserError: if a setting, a file or the machine does not allow the run.
    """
    first_cpu_times()  # `threads=auto` counts the cores that are idle from here on, while torch is imported
    check_settings(cfg)
    set_batch_limits(cfg)
    job = HydraConfig.get()
    overrides: list[str] = to_plain(job.overrides.task, resolve=False)  # as typed, with references to other settings
    directory = RunDirectory(Path(job.runtime.output_dir), Path(cfg.paths.log_dir))
    if job.mode == RunMode.MULTIRUN and str(cfg.trainer.devices) != "1":
        from imago.training.trial import run_trial

        run_trial(overrides, directory.path)
        return directory.summary.get("best_value", float("nan"))
    directory.signals.is_last_run = job.mode == RunMode.RUN
    cfg.paths.run_dir = str(directory.path)
    overrides = store_absolute_paths(cfg, overrides)
    starts_over = cfg.resume == "auto"  # the run is new, or ended before its first checkpoint
    if starts_over:
        cfg.resume = None
    check = None if starts_over else lambda: check_run_directory(cfg, directory.path)
    with directory.open(OmegaConf.to_yaml(cfg, resolve=True), overrides, cfg.seed, check):
        if directory.is_main_process:
            directory.update(tags=to_plain(cfg.tags))
        if starts_over:
            log.info("resume=auto: there is no checkpoint yet, so training starts from its beginning")
        if cfg.tune:
            from imago.training.tune import tune_lr

            return tune_lr(cfg, directory, overrides)
        return fit_and_test(cfg, directory)


def fit_and_test(cfg: DictConfig, directory: RunDirectory) -> float:
    """Build data, task and Trainer; fit; test once with the best checkpoint; write the summary."""
    import torch
    from lightning.pytorch.utilities.model_helpers import is_overridden

    from imago.inference.run_split import images_digest
    from imago.training.best_checkpoint import calibrate_and_plot_best_checkpoint
    from imago.training.build import build_run, final_checkpoint, one_line_for_misconfiguration
    from imago.training.console import end_lines, extension_settings, start_table, usable_commands
    from imago.training.machine_checks import prepare_machine
    from imago.training.pruning import built_settings, load_pruned, measure_pruned
    from imago.trust import packages_to_trust

    precision, precision_reason = prepare_machine(cfg)
    directory.store_setting("threads", cfg.threads)
    pruned = load_pruned(cfg)
    data, task, trainer, preprocess_origin = build_run(cfg, precision, directory, pruned)
    log.info("%s\n", start_table(cfg, data, task, trainer, precision_reason, preprocess_origin))
    commands = list(usable_commands(task))
    _store_provenance(data, trainer, directory, commands)
    _prepare_data(data, trainer)
    measure_pruned(pruned, task, data, trainer, directory)
    last = _checked_state(cfg, task, directory)
    with one_line_for_misconfiguration():
        trainer.fit(task, datamodule=data, ckpt_path=last)
    directory.signals.raise_if_received()
    # Compiling once more, for fp32, would take longer than the test.
    with torch.compiler.set_stance("force_eager") if cfg.compile else nullcontext():
        if cfg.test and is_overridden("test_step", task):
            trainer.test(task, datamodule=data, ckpt_path=final_checkpoint(directory.path), verbose=False)
            if directory.is_main_process:  # the fingerprint of the data does not depend on the pixels
                tested = images_digest(data.splits.test, data.class_names)
                directory.add_provenance(data.fingerprint(), test=tested)
        else:
            log.info("not tested: %s", "no test_step" if cfg.test else "test=false; eval.py tests the best checkpoint")
    calibrate_and_plot_best_checkpoint(cfg, data, task, trainer, directory)
    if directory.is_main_process:  # only its summary is complete
        extension = extension_settings(cfg, directory.summary, trainer.max_epochs or 1)
        trust = packages_to_trust(built_settings(cfg, task))
        log.info("\n%s", end_lines(directory.summary, directory.path, extension, commands, trust))
    return directory.summary.get("best_value", float("nan"))


def _checked_state(cfg: DictConfig, task: "LightningModule", directory: RunDirectory) -> Path | None:
    """Return the checkpoint that a resumed run continues from; None for a new run."""
    from imago.inference.load import check_compatible

    last = None
    if cfg.resume is not None:
        last = resolve_checkpoint(directory.path, "last")
        num_epochs, num_steps = check_compatible(last, task)
        reached_limits(cfg.trainer, num_epochs, num_steps)
        log.info("continued after %s\n", counted(num_steps, "step"))
    directory.accept()
    return last


def _prepare_data(data: "ImageDataModule", trainer: "Trainer") -> None:
    from imago.training.run_checks import warn_of_unused_splits, warn_of_unvalidated_epochs

    warn_of_unused_splits(HydraConfig.get().overrides.task, data)
    warn_of_unvalidated_epochs(trainer)
    share = data.batches_per_epoch(trainer.limit_train_batches) / data.batches_per_epoch()
    cache = data.fill_cache(trainer.num_devices, (trainer.max_epochs or 1) * share)
    log.info("image cache: %s\n", cache)


def _store_provenance(
    data: "ImageDataModule", trainer: "Trainer", directory: RunDirectory, commands: list[str]
) -> None:
    """Write what is known now to provenance.json, and split.csv; a resumed run must have the same data."""
    import torch

    from imago.inference.run_split import images_digest, sampled_digest

    if not directory.is_main_process:
        return
    digests, saved = {"images": sampled_digest(data.splits)}, read_json(directory.path / "provenance.json")
    if "test" in saved:
        digests["test"] = images_digest(data.splits.test, data.class_names)
    num, num_before = trainer.world_size, saved.get("processes", trainer.world_size)
    if num_before != num:
        text = "this run had %d processes, now it has %d: data.batch_size is still the batch of all together, but each "
        log.warning(
            f"{text}process has its own dropout and BatchNorm, so the weights differ a little\n", num_before, num
        )
    device = trainer.strategy.root_device
    machine = {"device": str(device), "precision": trainer.precision, "processes": num}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    directory.add_provenance(data.fingerprint(), **machine, commands=commands, **digests)
    data.write_split(directory.path)
