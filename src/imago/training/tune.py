"""Learning-rate range test (`tune=lr`): train some steps with increasing learning rates and suggest one."""

import logging
import math
import shlex
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from imago.analysis.lr_curve import save_lr_curve, suggest_lr
from imago.callbacks.loss_curve import LossCurve
from imago.errors import ConfigError
from imago.files import write_csv
from imago.paths import command, short_path
from imago.runs.run_directory import RunDirectory
from imago.training.build import build_run, one_line_for_misconfiguration
from imago.training.machine_checks import prepare_machine
from imago.training.other_task import is_image_task
from imago.training.pruning import load_pruned

log = logging.getLogger(__name__)

_LOWEST_LR, _HIGHEST_LR = 1e-6, 10.0  # our own choice, wide enough for SGD and for AdamW
_NUM_STEPS = 140  # 20 per power of ten; our own choice


def tune_lr(cfg: DictConfig, directory: RunDirectory, overrides: Sequence[str]) -> float:
    """Suggest a learning rate for these settings; val and test are not used, and no weights are saved.

    Writes lr_curve.csv and lr_curve.png, and prints the command of the training to come from `overrides`, as typed.

    Raises:
        ConfigError: if the loss does not decrease at any learning rate, or the optimizer has no `lr`.
    """
    if not is_image_task(cfg):
        raise ConfigError(
            f"tune=lr: {cfg.task._target_} is not an imago.task.base.ImageTask, so optimizer.lr may be unused."
        )
    if "lr" not in cfg.optimizer:
        raise ConfigError(
            f"tune=lr: {cfg.optimizer._target_} has no setting optimizer.lr; use one that has, e.g. optimizer=adamw."
        )
    losses = _losses_of_increasing_lr(cfg, directory)
    growth = (_HIGHEST_LR / _LOWEST_LR) ** (1 / (_NUM_STEPS - 1))
    lrs = [_LOWEST_LR * growth**step for step in range(len(losses))]
    suggestion = suggest_lr(lrs, losses) if losses else None
    curve = directory.path / "lr_curve.csv"
    write_csv(curve, [("lr", "loss"), *zip(lrs, losses, strict=True)])
    if losses:
        curve = curve.with_suffix(".png")
        save_lr_curve(lrs, losses, suggestion, curve)
    if suggestion is None:
        raise ConfigError(
            f"tune=lr: the loss did not decrease at any learning rate from {_LOWEST_LR:g} to {_HIGHEST_LR:g}; check "
            f"the images and labels, and see {short_path(curve)}."
        )
    directory.update(tuned={"optimizer.lr": float(f"{suggestion:.1e}")})
    typed = [text for text in overrides if not text.startswith(("tune=", "run_name=", "optimizer.lr=", "hydra."))]
    settings = shlex.join([*typed, f"optimizer.lr={suggestion:.1e}"])
    log.info("suggested learning rate %.1e, a tenth of where the loss is lowest: %s", suggestion, short_path(curve))
    log.info("next:\n  %s %s", command("train"), settings)
    return suggestion


def _losses_of_increasing_lr(cfg: DictConfig, directory: RunDirectory) -> list[float]:
    """Return the loss at each learning rate, up to the first loss that is not finite."""
    settings = _range_test_settings(cfg)
    precision, _ = prepare_machine(settings)
    data, task, trainer, _ = build_run(settings, precision, directory, load_pruned(settings))
    log.info("tune=lr: at most %s steps on the training images\n", _NUM_STEPS)
    with one_line_for_misconfiguration():
        trainer.fit(task, datamodule=data)
    (curve,) = (c for c in trainer.callbacks if isinstance(c, LossCurve))  # type: ignore[attr-defined]
    return [loss for loss in curve.losses if math.isfinite(loss)]


def _range_test_settings(cfg: DictConfig) -> DictConfig:
    """Return a copy of the settings with an increasing learning rate, without validation, checkpoints and loggers."""
    range_test: Any = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    with open_dict(range_test):
        range_test.optimizer.lr = _LOWEST_LR
        range_test.schedule = {
            "_target_": "imago.schedule.schedules.LrSweep",
            "num_steps": _NUM_STEPS,
            "range_factor": _HIGHEST_LR / _LOWEST_LR,
        }
        loss_curve = {"_target_": "imago.callbacks.loss_curve.LossCurve", "num_steps": _NUM_STEPS}
        range_test.callbacks = {"step_seed": range_test.callbacks.get("step_seed"), "loss_curve": loss_curve}
        range_test.logger = {}
        # 10 * _NUM_STEPS: more than the steps of the test, so nothing is logged.
        range_test.trainer.update(
            max_epochs=_NUM_STEPS, max_steps=-1, limit_val_batches=0, log_every_n_steps=10 * _NUM_STEPS
        )
        range_test.trainer.enable_progress_bar = False
    return range_test
