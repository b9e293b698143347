"""The command `export.py`: write a checkpoint in another format, kept only if its outputs equal the checkpoint's."""

import logging
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from imago import onnx_classifier
from imago.data.stratified import evenly_spread
from imago.errors import ConfigError, DataError
from imago.export.formats import FORMATS, LOSSLESS, Options, report_file
from imago.export.metadata import metrics_of
from imago.files import PARTIAL_SUFFIX, make_writable, read_json, remove_partial_files, report_unwritable, write_json
from imago.inference.calibration import checkpoint_digests
from imago.inference.data_settings import read_data_settings, training_data
from imago.inference.find_model import check_and_find_model, is_onnx, resolve_checkpoint
from imago.inference.load import load_calibrated
from imago.inference.run_split import output_indices
from imago.instantiate import build
from imago.log import log_to
from imago.paths import command, short_path
from imago.resources import available_cores
from imago.runs.run_directory import lock_directory
from imago.text import counted, printable

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.export.formats import Predict
    from imago.model.classifier import Classifier

log = logging.getLogger(__name__)

_EXPORT_DIRECTORY, _LOG_FILE = "export", "export.log"
_MAX_ACCURACY_DROP = 0.5  # that of configs/export.yaml
_NUM_CALIBRATION_IMAGES = 500  # ranges of activations hardly change with more; our own choice


def export(cfg: DictConfig) -> None:
    """Write RUN/export/model.onnx, or the file of another format, and its report, after the comparison passed.

    With `benchmark`, all formats that are installed are compared instead.

    Raises:
        UserError: for what the user can correct.
    """
    start_s = perf_counter()
    checkpoint, run = _check_and_find_checkpoint(cfg)
    data_settings = read_data_settings(run, cfg.trust)
    directory = run / _EXPORT_DIRECTORY
    target = directory / FORMATS[cfg.format].file_of(cfg.precision)
    if target.exists() and not (cfg.overwrite or cfg.benchmark):
        raise ConfigError(f"{short_path(target)} exists; overwrite=true replaces it.")
    make_writable(directory, "run=COPY, a copy of the run")
    with lock_directory(directory, "is used by another export; wait for its end."), log_to(directory / _LOG_FILE):
        try:
            network = _load(cfg, checkpoint, run, data_settings)
            with report_unwritable(directory):
                written = _benchmark(cfg, network, directory) if cfg.benchmark else _export(cfg, network, target)
        except BaseException:
            log.debug("the export failed", exc_info=True)
            raise
        log.info("\n%s, in %.1f s", short_path(written), perf_counter() - start_s)
        if is_onnx(written):
            argument = shlex.quote(f"run={short_path(written)}")
            log.info("next:\n  %s %s\n  %s %s input=IMAGE", command("eval"), argument, command("predict"), argument)
        elif not cfg.benchmark:
            log.info("it runs in %s; docs/export.md shows how", FORMATS[cfg.format].runs_in)


def _check_and_find_checkpoint(cfg: DictConfig) -> tuple[Path, Path]:
    """Check the settings before torch is loaded; return checkpoint file and run directory, both absolute."""
    checkpoint, run = check_and_find_model(cfg.run, cfg.ckpt, "cpu", _problems(cfg))
    if run is None:
        raise ConfigError(
            f"run={cfg.run} is not in a run directory (no config.yaml names its data); type the run directory."
        )
    if is_onnx(checkpoint):  # to be compared with the run's network
        checkpoint = resolve_checkpoint(run, "best")
    if checkpoint.parent.resolve() != (run / "checkpoints").resolve():
        raise ConfigError(f"ckpt={cfg.ckpt} is not in {run / 'checkpoints'}: {run} would export another network.")
    return checkpoint.resolve(), run


def _problems(cfg: DictConfig) -> Iterator[str]:
    """Yield one line for each setting, or missing package, with which nothing can be exported."""
    if cfg.parity_samples is not None and cfg.parity_samples < 1:
        yield f"parity_samples={cfg.parity_samples} must be 1 or more, or null for all validation images."
    if is_onnx(Path(cfg.run or "")) and not cfg.benchmark:
        yield f"run={cfg.run} is an ONNX file already; type the run directory it came from."
    yield from _unknown_name("format", cfg.format, FORMATS)
    if cfg.format not in FORMATS:
        return
    if cfg.benchmark and (cfg.format, cfg.precision, cfg.opset) != ("onnx", LOSSLESS, None):
        yield "benchmark=true compares every format and precision; leave out format=, precision= and opset=."
    format = FORMATS[cfg.format]
    yield from _unknown_name("precision", cfg.precision, format.precisions, f" of format={cfg.format}")
    if cfg.opset is not None and "onnx" not in format.packages:
        yield f"opset={cfg.opset} is a setting of format=onnx; format={cfg.format} has none."
    elif cfg.opset is not None and cfg.opset < 1:
        yield f"opset={cfg.opset} must be 1 or more, e.g. 18, or null for torch's own choice."
    yield from _lossy_problems(cfg)
    if missing := format.missing_packages():
        names = ", ".join(missing)
        yield f"format={cfg.format} needs {names}, not installed; run {format.install}, then use .venv/bin/python."


def _unknown_name(key: str, value: str, names: Collection[str], of: str = "") -> Iterator[str]:
    if value not in names:
        close = get_close_matches(str(value), names, n=1)
        end = f"; did you mean {close[0]}?" if close else "."
        yield f"{key}={value} is not one of {', '.join(names)}{of}{end}"


def _lossy_problems(cfg: DictConfig) -> Iterator[str]:
    """Yield one line for each setting of the precisions other than fp32 that is invalid or has no effect."""
    is_int8 = cfg.precision == "int8" or cfg.benchmark
    if not is_int8 and cfg.calibration_samples is not None:
        yield f"calibration_samples={cfg.calibration_samples} is a setting of precision=int8."
    elif cfg.calibration_samples is not None and cfg.calibration_samples < 1:
        yield f"calibration_samples={cfg.calibration_samples} must be 1 or more training images."
    if not is_int8 and cfg.keep_float:
        yield f"keep_float=[{','.join(map(str, cfg.keep_float))}] is a setting of precision=int8."
    if cfg.precision == LOSSLESS and not cfg.benchmark and cfg.max_accuracy_drop != _MAX_ACCURACY_DROP:
        yield f"max_accuracy_drop={cfg.max_accuracy_drop} is a setting of the other precisions than {LOSSLESS}."
    elif not 0 <= cfg.max_accuracy_drop <= 100:
        yield f"max_accuracy_drop={cfg.max_accuracy_drop} must be from 0 to 100 points."


class _Network(NamedTuple):
    """A loaded checkpoint with the images that it is compared on."""

    classifier: "Classifier"
    checkpoint: Path
    run: Path
    data: "ImageDataModule"
    split: str


def _load(cfg: DictConfig, checkpoint: Path, run: Path, data_settings: Mapping[str, Any]) -> _Network:
    from imago.export.torch_export import name_of

    classifier = load_calibrated(checkpoint, cfg.trust)
    num_classes = counted(len(classifier.class_names), "class", "classes")
    log.info("checkpoint  %s: %s, %s", short_path(checkpoint), name_of(classifier), num_classes)
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
    return _Network(classifier, checkpoint, run, data, split)


def _export(cfg: DictConfig, network: _Network, target: Path) -> Path:
    """Write one artefact and its report; return the artefact."""
    options = _options(cfg, cfg.format, cfg.precision, network.data)
    report = _write(cfg, network, options, target)
    report["checkpoint"] = os.path.relpath(network.checkpoint, network.run)
    write_json(target.with_name(report_file(options)), report | checkpoint_digests(network.checkpoint))
    return target


def _write(cfg: DictConfig, network: _Network, options: Options, target: Path) -> dict[str, Any]:
    from imago.export.accuracy import compare_accuracy
    from imago.export.artefact import write_artefact
    from imago.export.parity import compare_outputs

    metadata = {
        onnx_classifier.RUN_ID_KEY: printable(network.run.name),
        onnx_classifier.METRICS_KEY: metrics_of(network.run, network.checkpoint),
    }

    def verify(predict: "Predict", report: Mapping[str, Any]) -> dict[str, Any]:
        if options.precision == LOSSLESS:
            batches = _batches(network.data, network.split, cfg.parity_samples, "comparing")
            return compare_outputs(network.classifier, predict, (images for images, _ in batches))
        batches = _labeled_batches(network, cfg.parity_samples, "comparing")
        compared = compare_accuracy(network.classifier, predict, batches, cfg.max_accuracy_drop, report)
        return {"split": network.split} | compared

    return write_artefact(network.classifier, target, metadata, options, verify)


def _benchmark(cfg: DictConfig, network: _Network, directory: Path) -> Path:
    """Compare the formats, or an exported file with its checkpoint, and return the file of the table."""
    from imago.export import benchmark
    from imago.export.measure import CHECKPOINT
    from imago.export.torch_export import name_of

    def write(name: str, precision: str, path: Path) -> dict[str, Any]:
        return _write(cfg, network, _options(cfg, name, precision, network.data), path)

    remove_partial_files(directory, "benchmark.")  # of a benchmark that was killed
    num_bytes = sum(tensor.nbytes for tensor in network.classifier.state_dict().values())
    rows = [benchmark.Row("checkpoint", network.checkpoint, CHECKPOINT, "torch", num_bytes=num_bytes)]
    with TemporaryDirectory(dir=directory, prefix="benchmark.", suffix=PARTIAL_SUFFIX) as temporary:
        if is_onnx(file := Path(cfg.run)):
            _check_same_outputs(file, network)
            rows.append(benchmark.Row(file.name, file.resolve(), "onnx", "onnxruntime", num_bytes=file.stat().st_size))
        else:
            rows += benchmark.write_rows(Path(temporary), write)
        labels = _save_images(network, cfg.parity_samples, Path(temporary, "images.npy"))
        num_threads = sorted({1, available_cores()})
        benchmark.measure_rows(rows, Path(temporary, "images.npy"), labels, num_threads, cfg.trust)
    title = f"{name_of(network.classifier)} of {printable(network.run.name)}"
    return benchmark.write_benchmark(rows, directory, len(labels), network.split, title)


def _check_same_outputs(file: Path, network: _Network) -> None:
    """Raise a `DataError` if an ONNX file has other classes than the checkpoint, or prepares its images otherwise."""
    exported, classifier = onnx_classifier.OnnxClassifier(file), network.classifier
    if (exported.class_names, exported.preprocess) != (tuple(classifier.class_names), classifier.preprocess):
        raise DataError(
            f"{short_path(file)} has other classes or another preprocess record than {short_path(network.checkpoint)}; "
            "export it from this run with overwrite=true."
        )


def _save_images(network: _Network, limit: int | None, file: Path) -> np.ndarray:
    """Write the images to compare on to a .npy file, uint8 (N, 3, S, S), and return their labels (N,)."""
    size, num_all = network.classifier.preprocess.size, len(getattr(network.data.splits, network.split))
    shape = (len(evenly_spread(num_all, limit or num_all)), 3, size, size)
    saved = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    all_labels: list[np.ndarray] = []
    for images, labels in _labeled_batches(network, limit, "images"):
        start = sum(map(len, all_labels))
        saved[start : start + len(images)] = images
        all_labels.append(labels)
    saved.flush()
    return np.concatenate(all_labels)


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

    return Options(format, precision, cfg.opset, calibration_images, tuple(map(str, cfg.keep_float)))


def _labeled_batches(network: _Network, limit: int | None, title: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images and labels as `_batches` does; labels are indices of the network's classes."""
    labels = output_indices(network.classifier, network.data.class_names)
    for images, batch_labels in _batches(network.data, network.split, limit, title):
        yield images, labels[batch_labels]


def _batches(
    data: "ImageDataModule", split: str, limit: int | None, title: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images uint8 (B, 3, S, S) and labels (B,): all, or `limit` evenly spread, as files are sorted by class."""
    from tqdm import tqdm

    from imago.data.sampling import BatchIndices
    from imago.export.parity import NUM_IMAGES_AT_ONCE

    dataset: Any = data.dataset(split)
    indices = evenly_spread(len(dataset), limit or len(dataset))
    starts = range(0, len(indices), NUM_IMAGES_AT_ONCE)
    for start in tqdm(starts, desc=title, unit="batch", leave=False, disable=None):
        images, labels = dataset.__getitems__(BatchIndices(0, indices[start : start + NUM_IMAGES_AT_ONCE]))
        yield images.numpy(), labels.numpy()
