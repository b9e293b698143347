"""Calibrate best.ckpt on the validation images and plot figures of its errors."""

import logging
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig

from imago.data.datamodule import ImageDataModule
from imago.inference.calibration import calibrate, describe_calibration
from imago.inference.results import MAX_CONFUSION_CLASSES
from imago.inference.run_split import image_names, images_in_memory, validate
from imago.instantiate import targets, to_plain
from imago.logger.tensorboard import add_hparams, add_image
from imago.paths import checkpoint_file
from imago.runs.run_directory import RunDirectory
from imago.statistics.calibration import TEMPERATURE_KEY, UNCALIBRATED
from imago.statistics.metrics import LabeledOutputs, best_probability
from imago.task.base import ImageTask
from imago.text import counted

log = logging.getLogger(__name__)

_NUM_MISTAKES = 15  # 3 rows of 5 images; our own choice


def calibrate_and_plot_best_checkpoint(
    cfg: DictConfig, data: ImageDataModule, task: LightningModule, trainer: Trainer, directory: RunDirectory
) -> None:
    """Fit the temperature of best.ckpt, plot its confusion matrix and worst mistakes, add settings to TensorBoard.

    Runs the validation images through the network once more, in fp32 and in the main process only. Writes `figures/`
    and `checkpoints/calibration.json` of the run directory, and sets `data.trainer` to None.
    """
    if not directory.is_main_process:
        return
    summary = directory.summary
    add_hparams(to_plain(cfg), summary, trainer.loggers)
    checkpoint = checkpoint_file(directory.path)
    if not checkpoint.is_file():
        return
    if not isinstance(task, ImageTask):
        log.info("not calibrated: %s is not derived from imago.task.base.ImageTask", type(task).__name__)
        return
    if "own_forward" in task.hparams:
        log.info("not calibrated: %s overrides `forward`, which cannot be rebuilt", type(task).__name__)
        return
    if not task.hparams["predicts_classes"]:
        log.info("not calibrated: the outputs of %s are not the classes of the data", type(task).__name__)
        return
    if "num_images" not in summary["val"]:
        log.info("not calibrated: trainer.limit_val_batches=%s left images out", cfg.trainer.limit_val_batches)
        return
    data.trainer = None  # so that the loader gives this process all images, not the share of its rank
    built = task.hparams["net"], to_plain(cfg.metrics)
    trust = [name for node in built for _, name in targets(node)]
    accelerator = "cpu" if trainer.strategy.root_device.type == "cpu" else "auto"
    if cfg.tta != "none" and cfg.calibrate == "auto":  # of the final test; predict and export use one view
        _calibrate(checkpoint, validate(checkpoint, data, accelerator, cfg.tta, trust), cfg.tta)
    result = validate(checkpoint, data, accelerator, trust=trust)
    temperature = _calibrate(checkpoint, result) if cfg.calibrate == "auto" else UNCALIBRATED
    step = summary.get("best_epoch", 0) * (task.steps_per_epoch or 0)
    for name, file in _plot(result, temperature, data, directory.path / "figures").items():
        add_image(name, file, step, trainer.loggers)


def _calibrate(checkpoint: Path, result: LabeledOutputs, tta: str = "none") -> float:
    """Fit, save and log the temperature of a checkpoint."""
    fitted = calibrate(checkpoint, result, tta)
    log.info("%s", describe_calibration(fitted, tta))
    return float(fitted[TEMPERATURE_KEY])


def _plot(result: LabeledOutputs, temperature: float, data: ImageDataModule, figures: Path) -> dict[str, Path]:
    """Write the figures; return their files by their TensorBoard names."""
    from imago.analysis.evaluation import Evaluation
    from imago.analysis.plots import plot_mistakes, save_confusion, save_figure

    figures.mkdir(exist_ok=True)
    shown = ("val/confusion", "val/mistakes")[len(result.class_names) > MAX_CONFUSION_CLASSES :]
    files = {name: figures / f"{name.replace('/', '_')}.png" for name in shown}
    title = f"val, best epoch: {result.is_correct.mean():.2%} of {counted(len(result.labels), 'image')} correct"
    if "val/confusion" in files:
        save_confusion(result.confusion, result.class_names, title, files["val/confusion"])
    names = tuple(image_names(data.splits.val))
    probability = best_probability(result.logits, temperature)
    evaluation = Evaluation(figures, {}, result.class_names, names, result.labels, result.predicted, probability)
    images = images_in_memory(data.splits.val, evaluation.worst_mistakes(_NUM_MISTAKES).tolist())
    save_figure(plot_mistakes(evaluation, _NUM_MISTAKES, images), files["val/mistakes"])
    return files
