"""`tune=lr`: some steps of training with learning rates from low to high, and the one to take."""

import csv
import importlib.util
import logging
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from imago.analysis.lr_curve import save_lr_curve, suggest
from imago.callbacks.loss_curve import LossCurve
from imago.errors import ConfigError
from imago.paths import short_path
from imago.runs.run_directory import RunDirectory
from imago.training.fit import set_up

log = logging.getLogger(__name__)

_LOWEST_LR, _HIGHEST_LR = 1e-6, 10.0
_NUM_STEPS = 140  # 20 for each power of ten


def tune_lr(cfg: DictConfig, folder: RunDirectory, typed: Sequence[str]) -> float:
    """Find a learning rate for these settings; val and test are not looked at, and no weights are kept.

    Args:
        cfg: the settings of the training that is to come.
        folder: gets lr_curve.csv and lr_curve.png.
        typed: the settings as typed, for the next command.

    Returns:
        The suggested learning rate.

    Raises:
        ConfigError: if the loss falls at no learning rate.
    """
    if "lr" not in cfg.optimizer:
        raise ConfigError(f"tune=lr: {cfg.optimizer._target_} has no setting optimizer.lr.")
    lrs, losses = _sweep(cfg, folder)
    suggestion = suggest(lrs, losses) if losses else None
    image = _write(folder.path, lrs, losses, suggestion)
    if suggestion is None:
        raise ConfigError(
            f"tune=lr: the loss fell at no learning rate from {_LOWEST_LR:g} to {_HIGHEST_LR:g}; look at the images "
            f"and labels, and at {image}."
        )
    folder.update(tuned={"optimizer.lr": float(f"{suggestion:.1e}")})
    kept = [text for text in typed if not text.startswith(("tune=", "run_name=", "optimizer.lr=", "hydra."))]
    command = shlex.join(["python", "src/train.py", *kept, f"optimizer.lr={suggestion:.1e}"])
    log.info("suggested learning rate %.1e, a tenth of where the loss is lowest: %s", suggestion, image)
    log.info("next:\n  %s", command)
    return suggestion


def _sweep(cfg: DictConfig, folder: RunDirectory) -> tuple[list[float], list[float]]:
    """Train with growing learning rates; gives them and the loss at each, as far as it is a finite number."""
    parts = set_up(_sweep_settings(cfg), folder)
    log.info("tune=lr: at most %s steps on the training images\n", _NUM_STEPS)
    parts.trainer.fit(parts.task, datamodule=parts.data)
    (curve,) = (part for part in parts.trainer.callbacks if isinstance(part, LossCurve))  # type: ignore[attr-defined]
    losses = [loss for loss in curve.losses if math.isfinite(loss)]
    growth = (_HIGHEST_LR / _LOWEST_LR) ** (1 / (_NUM_STEPS - 1))
    return [_LOWEST_LR * growth**step for step in range(len(losses))], losses


def _sweep_settings(cfg: DictConfig) -> DictConfig:
    """Give settings that train with a growing learning rate, and do nothing else."""
    sweep: Any = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    with open_dict(sweep):
        sweep.optimizer.lr = _LOWEST_LR
        sweep.schedule = {
            "_target_": "imago.schedule.schedules.LrSweep",
            "num_steps": _NUM_STEPS,
            "range_factor": _HIGHEST_LR / _LOWEST_LR,
        }
        keyed = {name: part for name, part in sweep.callbacks.items() if name == "step_seed"}
        sweep.callbacks = keyed | {
            "loss_curve": {"_target_": "imago.callbacks.loss_curve.LossCurve", "num_steps": _NUM_STEPS}
        }
        sweep.logger = {}
        sweep.trainer.update(max_epochs=_NUM_STEPS, limit_val_batches=0, log_every_n_steps=10 * _NUM_STEPS)
        sweep.trainer.enable_progress_bar = False
    return sweep


def _write(folder: Path, lrs: Sequence[float], losses: Sequence[float], suggestion: float | None) -> str:
    """Write the curve as a table and, where matplotlib is installed, as an image; gives the place to look at."""
    table = folder / "lr_curve.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["lr", "loss"])
        writer.writerows(zip(lrs, losses, strict=True))
    if importlib.util.find_spec("matplotlib") is None or not losses:
        return f"{short_path(table)} (an image needs matplotlib)"
    image = folder / "lr_curve.png"
    save_lr_curve(lrs, losses, suggestion, image)
    return short_path(image)
