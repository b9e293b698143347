"""Write a network in one format, read the written file back, verify it, and only then give it its name."""

import logging
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from imago import onnx_classifier
from imago.errors import DataError, StorageError
from imago.export.formats import FORMATS, LOSSLESS, Options, Predict
from imago.export.metadata import FORMAT_KEY, NETWORK_KEY, PRECISION_KEY, build_metadata, write_metadata
from imago.files import PARTIAL_SUFFIX, move_to, remove_partial_files, sha256_of
from imago.model.classifier import Classifier
from imago.paths import METADATA_FILE
from imago.resources import free_disk_bytes

log = logging.getLogger(__name__)

_NUM_WEIGHT_COPIES = 3  # in what a library writes on the way to its format
_NOT_REPORTED_KEYS = (onnx_classifier.CLASS_NAMES_KEY, onnx_classifier.PREPROCESS_KEY, NETWORK_KEY)


def write_artefact(
    classifier: Classifier,
    target: Path,
    run_metadata: Mapping[str, Any],
    options: Options,
    verify: Callable[[Predict, Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Write an artefact to a temporary directory, verify it there, and replace `target`.

    Args:
        classifier: in eval mode, in float32, on the CPU.
        target: a file or a directory below RUN/export, as `FORMATS` says.
        run_metadata: as in `build_metadata`.
        options: format, precision and their settings.
        verify: takes the function of the written file, and its report so far; returns values for the report, or raises.

    Returns:
        The report.

    Raises:
        UserError: if the network cannot be written in this format, or `verify` refuses it; `target` is unchanged.
    """
    format = FORMATS[options.format]
    metadata = build_metadata(classifier, run_metadata, format.versions())
    _check_free_space(target.parent, classifier)
    remove_partial_files(target.parent, f"{target.name}.")  # of an export that was killed
    with TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.", suffix=PARTIAL_SUFFIX) as directory:
        part = Path(directory, target.name)
        report = _write_files(classifier, part, metadata, options, target.with_name("export.log"))
        try:
            predict = format.load_module().load(part, torch.get_num_threads())
        except DataError as error:
            raise DataError(f"{str(error).replace(str(part), str(target))} It was not kept.") from error
        verified = verify(predict, report)
        move_to(part, target)
    return {
        "file": target.name,
        "format": options.format,
        "precision": options.precision,
        "sha256": sha256_of(target / METADATA_FILE if target.is_dir() else target),  # metadata.json has the others
        **report,
        **verified,
        **{key: value for key, value in metadata.items() if key not in _NOT_REPORTED_KEYS},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write_files(
    classifier: Classifier, part: Path, metadata: Mapping[str, Any], options: Options, log_file: Path
) -> dict[str, Any]:
    """Write the artefact `part`; what the libraries print goes to `log_file`. Return the report so far."""
    output = log_file.open("a", encoding="utf-8", errors="backslashreplace")
    with output, redirect_stdout(output), redirect_stderr(output):
        report = FORMATS[options.format].load_module().write(classifier, part, metadata, options)
    if part.is_dir():
        settings = {FORMAT_KEY: options.format, PRECISION_KEY: options.precision, **report}
        write_metadata(part, {**metadata, **settings, NETWORK_KEY: dict(classifier.network_settings)})
    all_bytes = sum(file.stat().st_size for file in (part.iterdir() if part.is_dir() else (part,)))
    num_bytes = report.setdefault("num_bytes", all_bytes)  # a format may write more than its runtime reads
    opset = f"opset {report['opset']}, " if "opset" in report else ""
    log.info("written     %s %s, %s%.2f MB", options.format, options.precision, opset, num_bytes / 1e6)
    float_bytes = 4 * sum(parameter.numel() for parameter in classifier.parameters())
    if options.precision != LOSSLESS and num_bytes >= float_bytes:
        log.info("size        not smaller than the weights in float32, %.2f MB", float_bytes / 1e6)
    return report


def _check_free_space(directory: Path, classifier: Classifier) -> None:
    """Raise a `StorageError` if a full disk is to be expected, which some of the libraries would not report."""
    needed_bytes = _NUM_WEIGHT_COPIES * sum(value.nbytes for value in classifier.state_dict().values())
    free_bytes = free_disk_bytes(directory)
    if free_bytes < needed_bytes:
        raise StorageError(
            f"{directory} has {free_bytes:,} bytes free, and an export of this network takes up to {needed_bytes:,}; "
            "free some space."
        )
