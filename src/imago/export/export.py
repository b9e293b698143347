"""The command `export.py`: export a checkpoint as one ONNX file, kept only if its outputs equal the checkpoint's."""

import importlib.util
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from imago import onnx_classifier
from imago.errors import ConfigError, DataError
from imago.files import (
    atomic_write,
    make_writable,
    read_json,
    remove_partial_files,
    report_unwritable,
    sha256_of,
    write_json,
)
from imago.inference.evaluate import read_data_settings, training_data
from imago.inference.load import check_and_find_model, is_onnx, load_calibrated
from imago.instantiate import build
from imago.log import log_to
from imago.paths import checkpoint_file, command, short_path
from imago.text import counted, printable

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.model.classifier import Classifier

log = logging.getLogger(__name__)

_EXPORT_DIRECTORY, _ONNX_FILE, _REPORT_FILE, _LOG_FILE = "export", "model.onnx", "export_report.json", "export.log"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_NOT_REPORTED_KEYS = (
    *(onnx_classifier.CLASS_NAMES_KEY, onnx_classifier.PREPROCESS_KEY),
    *(onnx_classifier.SCHEMA_KEY, onnx_classifier.DIGEST_KEY),
)


def export(cfg: DictConfig) -> None:
    """Write RUN/export/model.onnx and export_report.json; older ones are replaced only after the comparison passed.

    Raises:
        UserError: for what the user can correct.
    """
    start_s = perf_counter()
    checkpoint, run = _check_and_find_checkpoint(cfg)
    data_settings = read_data_settings(run, cfg.trust)
    file = run / _EXPORT_DIRECTORY / _ONNX_FILE
    make_writable(file.parent, "run=RUN")
    with log_to(file.with_name(_LOG_FILE)):
        try:
            _export(cfg, checkpoint, run, data_settings, file)
        except BaseException:
            log.debug("the export failed", exc_info=True)
            raise
        argument = shlex.quote(f"run={short_path(file)}")
        log.info("\n%s, in %.1f s; next:", short_path(file), perf_counter() - start_s)
        log.info("  %s %s\n  %s %s input=IMAGE", command("eval"), argument, command("predict"), argument)


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
    if cfg.limit is not None and cfg.limit < 1:
        yield f"limit={cfg.limit} must be 1 or more, or null for all validation images."
    if cfg.opset is not None and cfg.opset < 1:
        yield f"opset={cfg.opset} must be 1 or more, e.g. 18, or null for torch's own choice."
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        yield f"{sys.executable} lacks {', '.join(missing)}; run make setup, then use .venv/bin/python."
    if is_onnx(Path(cfg.run or "")):
        yield f"run={cfg.run} is an ONNX file already; type the run directory it came from."


def _export(cfg: DictConfig, checkpoint: Path, run: Path, data_settings: Mapping[str, Any], file: Path) -> None:
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
    metrics = _metrics_of(run, checkpoint)
    metadata = {onnx_classifier.RUN_ID_KEY: printable(run.name), onnx_classifier.METRICS_KEY: metrics}
    with report_unwritable(file.parent):
        report = _write_verified(classifier, file, metadata, cfg.opset, _validation_images(data, cfg.limit, split))
        write_json(file.with_name(_REPORT_FILE), report | {"checkpoint": os.path.relpath(checkpoint, run)})


def _metrics_of(run: Path, checkpoint: Path) -> dict[str, Any]:
    """Return the run's val and test accuracy, number of images and interval; they are of the best checkpoint only.

    There are none while a run has not ended: its best checkpoint may be newer than its results.
    """
    summary, wanted = read_json(run / "summary.json"), ("acc", "interval_95", "num_images")
    if checkpoint != checkpoint_file(run) or summary.get("status") in ("running", "failed"):
        return {}
    by_split = {split: summary[split] for split in ("val", "test") if isinstance(summary.get(split), dict)}
    return {split: {key: values[key] for key in wanted if key in values} for split, values in by_split.items()}


def _write_verified(
    classifier: "Classifier", file: Path, metadata: dict[str, Any], opset: int | None, images: Iterator[np.ndarray]
) -> dict[str, Any]:
    """Write to a temporary file, read it back, compare, and only then rename it; return the report."""
    import torch

    from imago.export.onnx import export_onnx
    from imago.export.parity import compare_outputs

    remove_partial_files(file.parent, _ONNX_FILE)  # of an export that was killed
    with atomic_write(file, "wb") as content:
        temporary = Path(content.name)
        with (
            file.with_name(_LOG_FILE).open("a", encoding="utf-8", errors="backslashreplace") as log_file,
            redirect_stdout(log_file),
            redirect_stderr(log_file),
        ):
            opset = export_onnx(classifier, temporary, metadata, opset)
        log.info("written     opset %d, %.2f MB", opset, temporary.stat().st_size / 1e6)
        try:
            exported = onnx_classifier.OnnxClassifier(temporary, num_threads=torch.get_num_threads())
        except DataError as error:
            raise DataError(f"{str(error).replace(str(temporary), str(file))} It was not kept.") from error
        differences = compare_outputs(classifier, exported, images)
    log.info(
        "compared    {num_images:,} images: every label agrees, {num_ties} ties; differences up to "
        "{max_abs_diff_logits:.1e} in logits, {max_abs_diff_probabilities:.1e} in probabilities".format(**differences)
    )
    return {
        "file": file.name,
        "sha256": sha256_of(file),
        "num_bytes": file.stat().st_size,
        "opset": opset,
        **differences,
        **{key: value for key, value in exported.metadata.items() if key not in _NOT_REPORTED_KEYS},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


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
