"""The command `export.py`: export a checkpoint as one ONNX file, kept only if its outputs equal the checkpoint's."""

import hashlib
import importlib.util
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from imago import artifact
from imago.errors import ConfigError, DataError
from imago.files import atomic_write, read_json, remove_partial_files, write_json
from imago.inference.evaluate import read_data_settings
from imago.inference.load import check_settings, find_model, is_onnx, load_calibrated, run_directory
from imago.instantiate import build
from imago.paths import checkpoint_file, short_path
from imago.text import printable

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.model.classifier import Classifier

log = logging.getLogger(__name__)

FOLDER, FILE, REPORT, LOG = "export", "model.onnx", "export_report.json", "export.log"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_REPORTED = (artifact.TEMPERATURE, artifact.RUN_ID, artifact.METRICS, artifact.VERSIONS)


def export(cfg: DictConfig) -> None:
    """Write RUN/export/model.onnx and export_report.json; older ones are replaced only after the comparison passed.

    Raises:
        UserError: for what the user can correct.
    """
    start = perf_counter()
    checkpoint, run = _find_checkpoint(cfg)
    data_settings = read_data_settings(run, cfg.extra_targets)
    file = run / FOLDER / FILE
    with _logging(file.with_name(LOG)):
        log.debug("%s %s", checkpoint, OmegaConf.to_container(cfg, resolve=True))
        classifier = load_calibrated(checkpoint, cfg.extra_targets)  # torch is loaded here
        name, num_classes = type(classifier.net).__name__, len(classifier.class_names)
        log.info("checkpoint  %s: %s, %d classes", short_path(checkpoint), name, num_classes)
        data: ImageDataModule = build(data_settings, extra_targets=cfg.extra_targets)
        _set_up_data(data, run, classifier)
        metadata = {artifact.RUN_ID: printable(run.name), artifact.METRICS: _metrics(run, checkpoint)}
        report = _write_verified(classifier, file, metadata, cfg.opset, _validation_images(data, cfg.limit))
        report["checkpoint"] = os.path.relpath(checkpoint, run)
        write_json(file.with_name(REPORT), report)
        argument = shlex.quote(f"run={short_path(file)}")
        log.info("\n%s, in %.1f s; next:", short_path(file), perf_counter() - start)
        log.info("  python src/eval.py %s\n  python src/predict.py %s input=IMAGE", argument, argument)


def _find_checkpoint(cfg: DictConfig) -> tuple[Path, Path]:
    """Check the settings before torch is loaded; return checkpoint file and run directory, both absolute."""
    limit, opset = cfg.limit, cfg.opset
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    check_settings(
        {
            f"limit={limit} must be 1 or more, or null for all validation images.": limit is not None and limit < 1,
            f"opset={opset} must be 1 or more, e.g. 18, or null for torch's own choice.": opset is not None
            and opset < 1,
            f"{sys.executable} lacks {', '.join(missing)}; run make setup, then use .venv/bin/python.": bool(missing),
        }
    )
    checkpoint = find_model(cfg.run, cfg.ckpt, "cpu").resolve()
    if is_onnx(checkpoint):
        raise ConfigError(f"run={cfg.run} is an ONNX file already; type the run directory it came from.")
    run = run_directory(checkpoint)
    if run is None:
        raise ConfigError(f"run={cfg.run}: {checkpoint} is not in a run directory (no config.yaml names its data).")
    return checkpoint, run


def _set_up_data(data: "ImageDataModule", run: Path, classifier: "Classifier") -> None:
    """Read the run's data, to be prepared as the checkpoint says; log a warning if it has changed since training."""
    try:
        data.set_up_data()
    except DataError as error:
        raise DataError(f"{run / 'config.yaml'}: {error}") from error
    data.preprocess = classifier.preprocess
    log.info("data        %s validation images, %d px", f"{len(data.splits.val):,}", data.preprocess.size)
    if read_json(run / "provenance.json").get("data") not in (None, data.fingerprint()):
        log.warning("data        has changed since the run was trained; the comparison uses it as it is now")


def _metrics(run: Path, checkpoint: Path) -> dict[str, Any]:
    """Return the run's val and test accuracy with n and interval; they belong to the best checkpoint only."""
    if checkpoint != checkpoint_file(run):
        return {}
    summary, wanted = read_json(run / "summary.json"), ("acc", "interval_95", "num_images")
    found = {split: summary[split] for split in ("val", "test") if isinstance(summary.get(split), dict)}
    return {split: {key: values[key] for key in wanted if key in values} for split, values in found.items()}


def _write_verified(
    classifier: "Classifier", file: Path, metadata: dict[str, Any], opset: int | None, images: Iterator[np.ndarray]
) -> dict[str, Any]:
    """Write to a temporary file, read it back, compare, and only then rename it; return the report."""
    import torch

    from imago.export.onnx import export_onnx
    from imago.export.parity import check, compare, summarize

    remove_partial_files(file.parent, FILE)  # of an export that was killed
    try:
        with atomic_write(file, "wb") as content:
            part = Path(content.name)
            with _output_to(file.with_name(LOG)):
                opset = export_onnx(classifier, part, metadata, opset)
            log.info("written     opset %d, %.2f MB", opset, part.stat().st_size / 1e6)
            exported = artifact.OnnxClassifier(part, num_threads=torch.get_num_threads())
            by_batch_size = compare(classifier, exported, images)
            check(by_batch_size)
    except OSError as error:
        raise DataError(f"{file.parent} cannot be written: {error.strerror}.") from error
    numbers = summarize(by_batch_size)
    log.info(
        "compared    %s validation images: every label agrees, %d ties; differences up to %.1e in logits, %.1e in "
        "probabilities",
        *(f"{numbers['num_images']:,}", numbers["num_ties"]),
        *(numbers["max_abs_diff_logits"], numbers["max_abs_diff_probabilities"]),
    )
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "num_bytes": file.stat().st_size,
        "opset": opset,
        **numbers,
        **{key: exported.metadata[key] for key in _REPORTED},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _validation_images(data: "ImageDataModule", limit: int | None) -> Iterator[np.ndarray]:
    """Yield batches uint8 (B, 3, S, S): all images, or `limit` of them, evenly spread as files are sorted by class."""
    from tqdm import tqdm

    count = len(data.splits.val)
    num_wanted = min(limit or count, count)
    wanted = np.arange(num_wanted) * count // num_wanted
    start = 0
    for images, _ in tqdm(data.val_dataloader(), desc="comparing", unit="batch", leave=False, disable=None):
        rows = wanted[(wanted >= start) & (wanted < start + len(images))] - start
        start += len(images)
        if len(rows):
            yield images.numpy()[rows]


@contextmanager
def _logging(file: Path) -> Iterator[None]:
    """Send our log to the screen and to `file`; warnings, and the traceback of an error, to `file` only."""
    try:
        file.parent.mkdir(exist_ok=True)
        to_file = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"{file.parent} cannot be written: {error.strerror}.") from error
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_screen = logging.StreamHandler(sys.stdout)
    to_screen.setLevel(logging.INFO)
    to_screen.addFilter(logging.Filter("imago"))
    logging.basicConfig(handlers=[to_screen, to_file], format="%(message)s", force=True)
    logging.getLogger("imago").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    try:
        yield
    except BaseException:
        log.debug("the export failed", exc_info=True)
        raise
    finally:
        logging.captureWarnings(False)
        logging.basicConfig(handlers=[], force=True)


@contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Append all output of the process to `file`: torch and onnx write past Python's streams and logging."""
    streams = [(stream, stream.fileno()) for stream in (sys.stdout, sys.stderr)]
    saved = [os.dup(number) for _, number in streams]
    try:
        with file.open("ab") as target:
            for stream, number in streams:
                stream.flush()
                os.dup2(target.fileno(), number)
        yield
    finally:
        for (stream, number), copy in zip(streams, saved, strict=True):
            stream.flush()
            os.dup2(copy, number)
            os.close(copy)
