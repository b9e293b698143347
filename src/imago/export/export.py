"""The command `export.py`: write a checkpoint in another format, kept only if its outputs equal the checkpoint's."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from imago import onnx_classifier
from imago.errors import ConfigError, DataError
from imago.export.formats import FORMATS, LOSSLESS, Options
from imago.files import make_writable, read_json, report_unwritable, write_json
from imago.inference.evaluate import read_data_settings, training_data
from imago.inference.load import check_and_find_model, is_onnx, load_calibrated
from imago.inference.run_split import output_indices
from imago.instantiate import build
from imago.log import log_to
from imago.paths import checkpoint_file, command, short_path
from imago.text import counted, printable

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.export.parity import Predict

log = logging.getLogger(__name__)

_EXPORT_DIRECTORY, _LOG_FILE = "export", "export.log"
_NUM_CALIBRATION_IMAGES = 500  # ranges of activations hardly change with more; our own choice


def export(cfg: DictConfig) -> None:
    """Write RUN/export/model.onnx, or the file of another format, and its report, after the comparison passed.

    Raises:
        UserError: for what the user can correct.
    """
    start_s = perf_counter()
    checkpoint, run = _check_and_find_checkpoint(cfg)
    data_settings = read_data_settings(run, cfg.trust)
    directory = run / _EXPORT_DIRECTORY
    target = directory / FORMATS[cfg.format].file_of(cfg.precision)
    if target.exists() and not cfg.overwrite:
        raise ConfigError(f"{short_path(target)} exists; overwrite=true replaces it.")
    make_writable(directory, "run=RUN")
    with log_to(directory / _LOG_FILE):
        try:
            _export(cfg, checkpoint, run, data_settings, target)
        except BaseException:
            log.debug("the export failed", exc_info=True)
            raise
        log.info("\n%s, in %.1f s", short_path(target), perf_counter() - start_s)
        if is_onnx(target):
            argument = shlex.quote(f"run={short_path(target)}")
            log.info("next:\n  %s %s\n  %s %s input=IMAGE", command("eval"), argument, command("predict"), argument)


def _check_and_find_checkpoint(cfg: DictConfig) -> tuple[Path, Path]:
    """Check the settings before torch is loaded; return checkpoint file and run directory, both absolute."""
    checkpoint, run = check_and_find_model(cfg.run, cfg.ckpt, "cpu", _problems(cfg))
    if run is None:
        raise ConfigError(
            f"run={cfg.run} is not in a run directory (no config.yaml names its data); type the run directory."
        )
    if checkpoint.parent.resolve() != (run / "checkpoints").resolve():
        raise ConfigError(f"ckpt={cfg.ckpt} is not in {run / 'checkpoints'}: {run} would export another network.")
    return checkpoint.resolve(), run


def _problems(cfg: DictConfig) -> Iterator[str]:
    """Yield one line for each setting, or missing package, with which nothing can be exported."""
    if cfg.parity_samples is not None and cfg.parity_samples < 1:
        yield f"parity_samples={cfg.parity_samples} must be 1 or more, or null for all validation images."
    if is_onnx(Path(cfg.run or "")):
        yield f"run={cfg.run} is an ONNX file already; type the run directory it came from."
    if cfg.format not in FORMATS:
        close = get_close_matches(str(cfg.format), FORMATS, n=1)
        yield f"format={cfg.format} is not one of {', '.join(FORMATS)}{f'; did you mean {close[0]}?' if close else '.'}"
        return
    format = FORMATS[cfg.format]
    if cfg.precision not in format.precisions:
        yield f"precision={cfg.precision}: format={cfg.format} has {', '.join(format.precisions)}."
    if cfg.opset is not None and "onnx" not in format.packages:
        yield f"opset={cfg.opset} is a setting of format=onnx; format={cfg.format} has none."
    elif cfg.opset is not None and cfg.opset < 1:
        yield f"opset={cfg.opset} must be 1 or more, e.g. 18, or null for torch's own choice."
    yield from _lossy_problems(cfg)
    if missing := format.missing_packages():
        yield f"{sys.executable} lacks {', '.join(missing)}; run {format.install}, then use .venv/bin/python."


def _lossy_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield one line for each setting of the precisions other than fp32 that is invalid or has no effect."""
    if cfg.precision != "int8" and cfg.calibration_samples is not None:
        yield f"calibration_samples={cfg.calibration_samples} is a setting of precision=int8."
    elif cfg.calibration_samples is not None and cfg.calibration_samples < 1:
        yield f"calibration_samples={cfg.calibration_samples} must be 1 or more training images."
    if cfg.precision != "int8" and cfg.keep_float:
        yield f"keep_float=[{','.join(map(str, cfg.keep_float))}] is a setting of precision=int8."
    if not 0 <= cfg.max_accuracy_drop <= 100:
        yield f"max_accuracy_drop={cfg.max_accuracy_drop} must be from 0 to 100 points."


def _export(cfg: DictConfig, checkpoint: Path, run: Path, data_settings: Mapping[str, Any], target: Path) -> None:
    from imago.export.accuracy import compare_accuracy
    from imago.export.artefact import report_file, write_artefact
    from imago.export.parity import compare_outputs

    classifier = load_calibrated(checkpoint, cfg.trust)  # torch is loaded here
    name, num_classes = type(classifier.net).__name__, len(classifier.class_names)
    log.info("checkpoint  %s: %s, %s", short_path(checkpoint), name, counted(num_classes, "class", "classes"))
    data: ImageDataModule = build(data_settings, _recursive_=False)
    try:
        data.set_up_data(None if training_data(run) else "all")
    except DataError as error:
        raise DataError(f"{run / 'config.yaml'}: {error}") from error
    data.preprocess = classifier.preprocess
    split = next(split for split in ("val", "test", "train") if len(getattr(data.splits, split)))
    num_images = counted(len(getattr(data.splits, split)), "image")
    log.info("data        %s of %s, %d px", num_images, split, data.preprocess.size)
    if read_json(run / "provenance.json").get("data") not in (None, data.fingerprint()):
        log.warning("data        has changed since the run was trained; the comparison uses it as it is now")
    metadata = {
        onnx_classifier.RUN_ID_KEY: printable(run.name),
        onnx_classifier.METRICS_KEY: _metrics_of(run, checkpoint),
    }
    options = _options(cfg, cfg.format, cfg.precision, data)

    def verify(predict: "Predict", report: Mapping[str, Any]) -> dict[str, Any]:
        batches = _batches(data, split, cfg.parity_samples, "comparing")
        if options.precision == LOSSLESS:
            return compare_outputs(classifier, predict, (images for images, _ in batches))
        labels = output_indices(classifier, data.class_names)
        labeled = ((images, labels[batch_labels]) for images, batch_labels in batches)
        return {"split": split} | compare_accuracy(classifier, predict, labeled, cfg.max_accuracy_drop, report)

    with report_unwritable(target.parent):
        report = write_artefact(classifier, target, metadata, options, verify)
        report["checkpoint"] = os.path.relpath(checkpoint, run)
        write_json(target.with_name(report_file(options)), report)


def _metrics_of(run: Path, checkpoint: Path) -> dict[str, Any]:
    """Return the run's val and test accuracy, number of images and interval; they are of the best checkpoint only.

    There are none while a run has not ended: its best checkpoint may be newer than its results.
    """
    summary, wanted = read_json(run / "summary.json"), ("acc", "interval_95", "num_images")
    if checkpoint != checkpoint_file(run) or summary.get("status") in ("running", "failed"):
        return {}
    by_split = {split: summary[split] for split in ("val", "test") if isinstance(summary.get(split), dict)}
    return {split: {key: values[key] for key in wanted if key in values} for split, values in by_split.items()}


def _options(cfg: DictConfig, format: str, precision: str, data: "ImageDataModule") -> Options:
    """Return the settings of an export of this format and precision.

    Raises:
        DataError: for int8 without training images.
    """
    if precision != "int8":
        return Options(format, precision, cfg.opset)
    if not len(data.splits.train):
        raise DataError(f"precision=int8 needs training images, and run={cfg.run} has none; type precision=fp16.")
    num_images = cfg.calibration_samples or _NUM_CALIBRATION_IMAGES

    def calibration_images() -> Iterator[np.ndarray]:
        return (images for images, _ in _batches(data, "train", num_images, "calibrating"))

    return Options(format, precision, cfg.opset, calibration_images, tuple(cfg.keep_float))


def _batches(
    data: "ImageDataModule", split: str, limit: int | None, title: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images uint8 (B, 3, S, S) and labels (B,): all, or `limit` evenly spread, as files are sorted by class."""
    from tqdm import tqdm

    from imago.data.sampling import BatchIndices
    from imago.export.parity import NUM_IMAGES_AT_ONCE

    dataset: Any = data.dataset(split)
    indices = _spread(len(dataset), limit)
    starts = range(0, len(indices), NUM_IMAGES_AT_ONCE)
    for start in tqdm(starts, desc=title, unit="batch", leave=False, disable=None):
        images, labels = dataset.__getitems__(BatchIndices(0, indices[start : start + NUM_IMAGES_AT_ONCE]))
        yield images.numpy(), labels.numpy()


def _spread(num_all: int, limit: int | None) -> np.ndarray:
    """Return the indices of all images, or of `limit` evenly spread ones."""
    num_images = min(limit or num_all, num_all)
    return np.arange(num_images) * num_all // num_images
