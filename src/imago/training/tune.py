"""Learning-rate range test (`tune=lr`): train some steps with growing learning rates and suggest one."""

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
from imago.files import write_csv
from imago.paths import short_path
from imago.runs.run_directory import RunDirectory
from imago.training.build import build_run
from imago.training.machine_checks import check_machine

log = logging.getLogger(__name__)

_LOWEST_LR, _HIGHEST_LR = 1e-6, 10.0
_NUM_STEPS = 140  # 20 per power of ten


def tune_lr(cfg: DictConfig, directory: RunDirectory, overrides: Sequence[str]) -> float:
    """Suggest a learning rate for these settings; val and test are not used, and no weights are saved.

    Args:
        cfg: the settings of the training to come.
        directory: where lr_curve.csv and lr_curve.png are written.
        overrides: the settings as typed, for the printed command.

    Returns:
        The suggested learning rate.

    Raises:
        ConfigError: if the loss falls at no learning rate, or the optimizer has none.
    """
    if "lr" not in cfg.optimizer:
        raise ConfigError(f"tune=lr: {cfg.optimizer._target_} has no setting optimizer.lr.")
    lrs, losses = _train_with_growing_lr(cfg, directory)
    suggestion = suggest(lrs, losses) if losses else None
    curve = _write(directory.path, lrs, losses, suggestion)
    if suggestion is None:
        raise ConfigError(
            f"tune=lr: the loss fell at no learning rate from {_LOWEST_LR:g} to {_HIGHEST_LR:g}; check the images and "
            f"labels, and see {curve}."
        )
    directory.update(tuned={"optimizer.lr": float(f"{suggestion:.1e}")})
    kept = [text for text in overrides if not text.startswith(("tune=", "run_name=", "optimizer.lr=", "hydra."))]
    command = shlex.join(["python", "src/train.py", *kept, f"optimizer.lr={suggestion:.1e}"])
    log.info("suggested learning rate %.1e, a tenth of where the loss is lowest: %s", suggestion, curve)
    log.info("next:\n  %s", command)
    return suggestion


def _train_with_growing_lr(cfg: DictConfig, directory: RunDirectory) -> tuple[list[float], list[float]]:
    """Return the learning rates and the loss at each, up to the first loss that is not finite."""
    sweep = _sweep_settings(cfg)
    data, task, trainer, _ = build_run(sweep, check_machine(sweep).precision, directory)
    log.info("tune=lr: at most %s steps on the training images\n", _NUM_STEPS)
    trainer.fit(task, datamodule=data)
    (curve,) = (part for part in trainer.callbacks if isinstance(part, LossCurve))  # type: ignore[attr-defined]
    losses = [loss for loss in curve.losses if math.isfinite(loss)]
    growth = (_HIGHEST_LR / _LOWEST_LR) ** (1 / (_NUM_STEPS - 1))
    return [_LOWEST_LR * growth**step for step in range(len(losses))], losses


def _sweep_settings(cfg: DictConfig) -> DictConfig:
    """Return a copy of the settings with a growing learning rate, without validation, checkpoints and loggers."""
    sweep: Any = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    with open_dict(sweep):
        sweep.optimizer.lr = _LOWEST_LR
        sweep.schedule = {
            "_target_": "imago.schedule.schedules.LrSweep",
            "num_steps": _NUM_STEPS,
            "range_factor": _HIGHEST_LR / _LOWEST_LR,
        }
        seeding = {name: part for name, part in sweep.callbacks.items() if name == "step_seed"}
        loss_curve = {"_target_": "imago.callbacks.loss_curve.LossCurve", "num_steps": _NUM_STEPS}
        sweep.callbacks = seeding | {"loss_curve": loss_curve}
        sweep.logger = {}
        sweep.trainer.update(max_epochs=_NUM_STEPS, limit_val_batches=0, log_every_n_steps=10 * _NUM_STEPS)
        sweep.trainer.enable_progress_bar = False
    return sweep


def _write(run_dir: Path, lrs: Sequence[float], losses: Sequence[float], suggestion: float | None) -> str:
    """Write the curve as CSV and as a figure; return the path to look at."""
    write_csv(run_dir / "lr_curve.csv", [("lr", "loss"), *zip(lrs, losses, strict=True)])
    if not losses:
        return short_path(run_dir / "lr_curve.csv")
    save_lr_curve(lrs, losses, suggestion, run_dir / "lr_curve.png")
    return short_path(run_dir / "lr_curve.png")
