"""`export.py`: a checkpoint as one ONNX file in its run directory, kept only if it says what the checkpoint says."""

import hashlib
import importlib.util
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from imago import artifact
from imago.errors import ConfigError, DataError
from imago.files import read_json, write_json
from imago.inference.load import find_model, is_onnx, load_calibrated, run_directory
from imago.instantiate import build, check_targets
from imago.paths import short_path

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.export.parity import Parity
    from imago.model.classifier import Classifier

log = logging.getLogger(__name__)

FOLDER, FILE, REPORT, LOG = "export", "model.onnx", "export_report.json", "export.log"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_REPORTED = (artifact.TEMPERATURE, artifact.RUN_ID, artifact.METRICS, artifact.VERSIONS)


def export(cfg: DictConfig) -> None:
    """Write RUN/export/model.onnx and export_report.json; older ones give way only to a file that has proven good.

    Raises:
        UserError: for what the user can mend.
    """
    start = perf_counter()
    checkpoint, run = _find_run(cfg)
    data_settings = _data_settings(run, cfg.extra_targets)
    file = run / FOLDER / FILE
    with _logging(file.with_name(LOG)):
        log.debug("%s %s", checkpoint, OmegaConf.to_container(cfg, resolve=True))
        classifier = load_calibrated(checkpoint, cfg.extra_targets)  # torch is loaded here: nothing is left to refuse
        log.info("checkpoint  %s: %s", short_path(checkpoint), _describe(classifier))
        data = _set_up_data(data_settings, run, classifier, cfg.extra_targets)
        facts = {artifact.RUN_ID: _as_text(run.name), artifact.METRICS: _metrics(run, checkpoint, data)}
        samples = _validation_images(data, cfg.limit)
        report = _write_verified(classifier, file, facts, cfg.opset, samples)
        report["checkpoint"] = os.path.relpath(checkpoint, run)
        write_json(file.with_name(REPORT), report)
        log.info("\n%s", _end_lines(report, file, perf_counter() - start))


def _find_run(cfg: DictConfig) -> tuple[Path, Path]:
    """Give checkpoint file and run directory, absolute; refuses what cannot work before torch is loaded."""
    if cfg.limit is not None and cfg.limit < 1:
        raise ConfigError(f"limit={cfg.limit} must be 1 or more; leave it out to compare on all validation images.")
    if cfg.opset is not None and cfg.opset < 1:
        raise ConfigError(f"opset={cfg.opset} must be 1 or more, e.g. opset=18; leave it out for torch's own choice.")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{sys.executable} lacks {', '.join(missing)}; run make setup, then use .venv/bin/python.")
    checkpoint = find_model(cfg.run, cfg.ckpt, "cpu").resolve()
    if is_onnx(checkpoint):
        raise ConfigError(f"run={cfg.run} is an ONNX file already; give the run directory it came from.")
    run = run_directory(checkpoint)
    if run is None:
        raise ConfigError(f"run={cfg.run}: {checkpoint} is in no run directory (no config.yaml names its data).")
    return checkpoint, run


def _data_settings(run: Path, extra_targets: Sequence[str]) -> dict[str, Any]:
    """Read the run's data settings; its targets are held to what the user allows now, not to what the run allowed."""
    config = run / "config.yaml"
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(config).data, resolve=True)
    except Exception as error:  # yaml, OmegaConf and a missing key each raise their own
        raise DataError(f"{config}, which tells the data, cannot be read: {' '.join(str(error).split())}") from error
    check_targets(settings, extra_targets, "data")
    return settings


def _set_up_data(
    settings: dict[str, Any], run: Path, classifier: "Classifier", extra_targets: Sequence[str]
) -> "ImageDataModule":
    """Read the run's data, to be prepared as the checkpoint says."""
    data: ImageDataModule = build(settings, extra_targets=extra_targets)
    try:
        data.set_up_data()
    except DataError as error:
        raise DataError(f"{run / 'config.yaml'}: {error}") from error
    data.preprocess = classifier.preprocess
    log.info("data        %s validation images, %d px", f"{len(data.splits.val):,}", data.preprocess.size)
    before = read_json(run / "provenance.json").get("data")
    if before not in (None, data.fingerprint()):
        log.warning("data        has changed since the run was trained; the comparison takes it as it is now")
    return data


def _metrics(run: Path, checkpoint: Path, data: "ImageDataModule") -> dict[str, Any]:
    """Give the run's val and test accuracy with their n; they were measured with the best checkpoint only."""
    if checkpoint != run / "checkpoints" / "best.ckpt":
        return {}
    summary = read_json(run / "summary.json")
    found = {split: dict(summary[split]) for split in ("val", "test") if isinstance(summary.get(split), dict)}
    limit = OmegaConf.select(OmegaConf.load(run / "config.yaml"), "trainer.limit_val_batches")
    if "val" in found and isinstance(limit, float) and limit == 1:  # 1.0 is all of them, 1 is one batch
        found["val"].setdefault("num_images", len(data.splits.val))
    wanted = ("acc", "interval_95", "num_images")
    return {split: {key: facts[key] for key in wanted if key in facts} for split, facts in found.items()}


def _write_verified(
    classifier: "Classifier", file: Path, facts: dict[str, Any], opset: int | None, samples: Iterator[np.ndarray]
) -> dict[str, Any]:
    """Write under another name, compare, and only then give the file its name; returns the report."""
    for left_over in file.parent.glob(f"{FILE}.*.part"):  # of an export that was killed
        left_over.unlink(missing_ok=True)
    part = file.with_name(f"{FILE}.{os.getpid()}.part")
    try:
        opset = _write(classifier, part, facts, opset)
        exported, parity = _compare(classifier, part, samples)
        with part.open("rb+") as written:
            content = written.read()
            os.fsync(written.fileno())  # before the name moves: a power cut must not leave it on an empty file
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return {
        "file": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_bytes": len(content),
        "opset": opset,
        **parity.to_dict(),
        **{key: exported.metadata[key] for key in _REPORTED},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write(classifier: "Classifier", part: Path, facts: dict[str, Any], opset: int | None) -> int:
    from imago.export.onnx import export_onnx

    start = perf_counter()
    try:
        with _screen_to(part.with_name(LOG)):
            written = export_onnx(classifier, part, facts, opset)
    except OSError as error:
        raise DataError(f"{part.parent} cannot be written: {error.strerror}.") from error
    log.info("written     opset %d, %.2f MB, in %.1f s", written, part.stat().st_size / 1e6, perf_counter() - start)
    return written


def _compare(
    classifier: "Classifier", part: Path, samples: Iterator[np.ndarray]
) -> tuple[artifact.OnnxClassifier, "Parity"]:
    """Read the file back and compare; raises what makes it unfit."""
    import torch

    from imago.export.parity import BATCH_SIZES, compare

    start = perf_counter()
    try:
        exported = artifact.OnnxClassifier(part, num_threads=torch.get_num_threads())
    except DataError as error:
        raise DataError(str(error).replace(part.name, FILE)) from error
    parity = compare(classifier, exported, samples)
    parity.refuse_disagreement()
    sizes = ", ".join(map(str, BATCH_SIZES))
    log.info("compared    every label agrees, with batches of %s, in %.1f s", sizes, perf_counter() - start)
    return exported, parity


def _validation_images(data: "ImageDataModule", limit: int | None) -> Iterator[np.ndarray]:
    """Give batches uint8 (B, 3, S, S): all images, or `limit` of them, evenly spread as files come class by class."""
    from tqdm import tqdm

    count = len(data.splits.val)
    num_wanted = min(limit or count, count)
    wanted = np.arange(num_wanted) * count // num_wanted
    start = 0
    for images, _ in tqdm(data.val_dataloader(), desc="comparing", unit="batch", leave=False, disable=None):
        here = wanted[(wanted >= start) & (wanted < start + len(images))] - start
        start += len(images)
        if len(here):
            yield images.numpy()[here]


def _end_lines(report: dict[str, Any], file: Path, seconds: float) -> str:
    """Say what came out, and what to type next."""
    place = short_path(file)
    rows = {
        "file": place,
        "size": f"{report['num_bytes'] / 1e6:.2f} MB",
        "opset": report["opset"],
        "max difference": f"{report['max_abs_diff_logits']:.1e} in logits, "
        f"{report['max_abs_diff_probabilities']:.1e} in probabilities",
        "agreement": f"{report['label_agreement']:.0%} of labels, {report['num_ties']} ties",
        "compared on": f"{report['num_images']:,} validation images",
        "seconds": f"{seconds:.1f}",
    }
    width = max(map(len, rows))
    argument = shlex.quote(f"run={place}")
    return "\n".join(
        [
            *(f"{name:<{width}}  {value}" for name, value in rows.items()),
            "next:",
            f"  python src/eval.py {argument}",
            f"  python src/predict.py {argument} input=IMAGE",
        ]
    )


@contextmanager
def _logging(file: Path) -> Iterator[None]:
    """Send our log to the screen and to `file`; warnings, and the traceback of what goes wrong, to `file` only."""
    try:
        file.parent.mkdir(exist_ok=True)
        to_file = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"{file.parent} cannot be written: {error.strerror}.") from error
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_screen = logging.StreamHandler(sys.stdout)
    to_screen.setLevel(logging.INFO)
    ours, warned = logging.getLogger("imago"), logging.getLogger("py.warnings")
    ours.setLevel(logging.DEBUG)
    ours.handlers, warned.handlers = [to_screen, to_file], [to_file]
    ours.propagate = warned.propagate = False
    logging.captureWarnings(True)
    try:
        yield
    except BaseException as error:
        log.debug("".join(traceback.format_exception(error)))
        raise
    finally:
        logging.captureWarnings(False)
        ours.handlers, warned.handlers = [], []
        to_file.close()


@contextmanager
def _screen_to(file: Path) -> Iterator[None]:
    """Append what anybody prints meanwhile to `file`: torch and onnx write past Python's streams and logging too."""
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


def _describe(classifier: "Classifier") -> str:
    count = sum(parameter.numel() for parameter in classifier.parameters())
    return f"{type(classifier.net).__name__}, {count:,} parameters, {len(classifier.class_names)} classes"


def _as_text(name: str) -> str:
    """A folder's name may hold bytes that are no UTF-8, which ONNX cannot keep."""
    return name.encode("utf-8", "backslashreplace").decode()
