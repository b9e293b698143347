"""The command `export.py`: write a checkpoint in another format, kept only if its outputs equal the checkpoint's."""

import logging
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from imago import onnx_classifier
from imago.errors import ConfigError, DataError
from imago.export.formats import FORMATS, Options
from imago.files import make_writable, read_json, report_unwritable, write_json
from imago.inference.evaluate import read_data_settings, training_data
from imago.inference.load import check_and_find_model, is_onnx, load_calibrated
from imago.instantiate import build
from imago.log import log_to
from imago.paths import checkpoint_file, command, short_path
from imago.text import counted, printable

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.export.parity import Predict

log = logging.getLogger(__name__)

_EXPORT_DIRECTORY, _LOG_FILE = "export", "export.log"


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
    yield from _unknown_name("format", cfg.format, FORMATS)
    if cfg.format not in FORMATS:
        return
    format = FORMATS[cfg.format]
    yield from _unknown_name("precision", cfg.precision, format.precisions, f" of format={cfg.format}")
    if cfg.opset is not None and "onnx" not in format.packages:
        yield f"opset={cfg.opset} is a setting of format=onnx; format={cfg.format} has none."
    elif cfg.opset is not None and cfg.opset < 1:
        yield f"opset={cfg.opset} must be 1 or more, e.g. 18, or null for torch's own choice."
    if missing := format.missing_packages():
        names = ", ".join(missing)
        yield f"format={cfg.format} needs {names}, not installed; run {format.install}, then use .venv/bin/python."


def _unknown_name(key: str, value: str, names: Collection[str], of: str = "") -> Iterator[str]:
    if value not in names:
        close = get_close_matches(str(value), names, n=1)
        end = f"; did you mean {close[0]}?" if close else "."
        yield f"{key}={value} is not one of {', '.join(names)}{of}{end}"


def _export(cfg: DictConfig, checkpoint: Path, run: Path, data_settings: Mapping[str, Any], target: Path) -> None:
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
    options = Options(cfg.format, cfg.precision, cfg.opset)

    def verify(predict: "Predict") -> dict[str, Any]:
        return compare_outputs(classifier, predict, _validation_images(data, cfg.parity_samples, split))

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


def _validation_images(data: "ImageDataModule", limit: int | None, split: str = "val") -> Iterator[np.ndarray]:
    """Yield batches uint8 (B, 3, S, S): all images, or `limit` of them, evenly spread as files are sorted by class."""
    from tqdm import tqdm

    from imago.data.sampling import BatchIndices
    from imago.export.parity import NUM_IMAGES_AT_ONCE

    dataset: Any = data.dataset(split)
    num_all_images = len(dataset)
    num_images = min(limit or num_all_images, num_all_images)
    indices = np.arange(num_images) * num_all_images // num_images
    starts = range(0, num_images, NUM_IMAGES_AT_ONCE)
    for start in tqdm(starts, desc="comparing", unit="batch", leave=False, disable=None):
        images, _ = dataset.__getitems__(BatchIndices(0, indices[start : start + NUM_IMAGES_AT_ONCE]))
        yield images.numpy()
