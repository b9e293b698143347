"""The network of the best epoch over the validation images: its temperature, and figures of what it gets wrong."""

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from imago.data.datamodule import ImageDataModule
from imago.inference.calibration import KEY, calibrate
from imago.inference.results import image_names, images_in_memory
from imago.inference.run_split import validate
from imago.logger.tensorboard import add_hparams, add_image
from imago.runs.run_directory import RunDirectory
from imago.statistics.metrics import Result, softmax, worst_mistakes

log = logging.getLogger(__name__)

_NUM_MISTAKES = 15


def describe_best(cfg: DictConfig, data: ImageDataModule, trainer: Trainer, folder: RunDirectory, step: int) -> None:
    """Fit the temperature of best.ckpt, draw its confusions and mistakes, and fill TensorBoard's table of settings.

    The validation images go through the network once more, in fp32 and in this process alone.

    Args:
        cfg: the settings of the run.
        data: of the run.
        trainer: after the test.
        folder: of the run; nothing is done but in the process that writes to it.
        step: optimizer steps at the end of the best epoch.
    """
    if not folder.is_main_process:
        return
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    add_hparams(settings, folder.summary, trainer.loggers)
    checkpoint = folder.path / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        return
    if "num_images" not in folder.summary["val"]:
        log.info(
            "not calibrated: trainer.limit_val_batches=%s left validation images out", cfg.trainer.limit_val_batches
        )
        return
    data.trainer = None  # or each rank would see its share
    accelerator = "cpu" if trainer.strategy.root_device.type == "cpu" else "auto"
    result = validate(checkpoint, data, cfg.extra_targets, accelerator)
    temperature = _calibrate(checkpoint, result, "none")
    if cfg.tta != "none":  # the final test's views; predict, export and serve show one
        _calibrate(checkpoint, validate(checkpoint, data, cfg.extra_targets, accelerator, cfg.tta), cfg.tta)
    calibrated = replace(result, confidence=softmax(result.logits / temperature).max(axis=1))
    if importlib.util.find_spec("matplotlib") is None:
        log.info("no figures of the best epoch: matplotlib is not installed")
        return
    for name, file in _draw(calibrated, data, folder.path / "figures").items():
        add_image(name, file, step, trainer.loggers)


def _calibrate(checkpoint: Path, result: Result, tta: str) -> float:
    entry = calibrate(checkpoint, result, tta)
    log.info(
        "calibrated on val%s: temperature %.3f, ECE %.2f %% -> %.2f %%",
        *("" if tta == "none" else f" with tta={tta}", entry[KEY]),
        *(100 * entry["ece_before"], 100 * entry["ece_after"]),
    )
    return float(entry[KEY])


def _draw(result: Result, data: ImageDataModule, folder: Path) -> dict[str, Path]:
    """Write the figures and give them by the names that they have in TensorBoard."""
    from imago.analysis.evaluation import Evaluation
    from imago.analysis.plots import draw_mistakes, save_confusion, save_figure

    folder.mkdir(exist_ok=True)
    files = {name: folder / f"{name.replace('/', '_')}.png" for name in ("val/confusion", "val/mistakes")}
    title = f"val, best epoch: {result.is_right.mean():.2%} of {len(result.labels):,} images right"
    save_confusion(result.confusion, result.class_names, title, files["val/confusion"])
    names = tuple(image_names(data, "val"))
    facts: dict[str, Any] = {}
    evaluation = Evaluation(
        folder, facts, result.class_names, names, result.labels, result.predicted, result.confidence
    )
    saved = images_in_memory(data, "val", worst_mistakes(result.is_right, result.confidence, _NUM_MISTAKES).tolist())
    save_figure(draw_mistakes(evaluation, _NUM_MISTAKES, saved), files["val/mistakes"])
    return files
