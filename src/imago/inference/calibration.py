"""The temperature of a checkpoint: fitted on val, kept beside it in calibration.json, and never taken for another's."""

import hashlib
import math
from pathlib import Path
from typing import Any

from imago.errors import DataError
from imago.files import read_json, write_json
from imago.statistics.calibration import UNCALIBRATED, fit_temperature, nll, reliability
from imago.statistics.metrics import Result, softmax

FILE = "calibration.json"  # one entry for each checkpoint of the folder, and for each of its `tta`, by their names
KEY = "calibration_temperature"


def calibrate(checkpoint: Path, result: Result, tta: str = "none") -> dict[str, Any]:
    """Fit the temperature of a checkpoint and write it down.

    Args:
        checkpoint: the file that gave the logits.
        result: for the validation images, in fp32.
        tta: the views of each image that they were answered from: a mean over several is less sure than one view.

    Returns:
        What was written: the temperature, and negative log-likelihood (in nats) and expected calibration error without
        and with it.

    Raises:
        DataError: if it cannot be written.
    """
    temperature = fit_temperature(result.logits, result.labels)
    before, after = (softmax(result.logits / number).max(axis=1) for number in (UNCALIBRATED, temperature))
    entry = {
        KEY: temperature,
        "split": "val",
        "num_images": len(result.labels),
        "nll_before": nll(result.logits, result.labels),
        "nll_after": nll(result.logits, result.labels, temperature),
        "ece_before": reliability(before, result.is_right).ece,
        "ece_after": reliability(after, result.is_right).ece,
        "checkpoint_sha256": _sha256(checkpoint),
    }
    file = checkpoint.with_name(FILE)
    try:
        write_json(file, read_json(file) | {_entry_name(checkpoint, tta): entry})
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror}.") from error
    return entry


def read_temperature(checkpoint: Path, tta: str = "none") -> tuple[float, str]:
    """Give the temperature of a checkpoint and an empty text, or UNCALIBRATED and why there is none.

    Args:
        checkpoint: the file.
        tta: the views of each image that it answers from; each has a temperature of its own.

    Raises:
        DataError: if `calibration.json` holds nonsense.
    """
    file, name = checkpoint.with_name(FILE), _entry_name(checkpoint, tta)
    how_to_fit = _how_to_fit(checkpoint, tta)
    entry = read_json(file).get(name)
    if entry is None:
        return UNCALIBRATED, f"{file} has no temperature of {name}; {how_to_fit}"
    temperature = entry.get(KEY) if isinstance(entry, dict) else None
    if not isinstance(temperature, int | float) or not math.isfinite(temperature) or temperature <= 0:
        raise DataError(f"{file} is damaged: {KEY} of {name} is {temperature!r}; delete it, and {how_to_fit}.")
    if entry.get("checkpoint_sha256") != _sha256(checkpoint):
        return UNCALIBRATED, f"{file} is of another {checkpoint.name}; {how_to_fit}"
    return float(temperature), ""


def _entry_name(checkpoint: Path, tta: str) -> str:
    return checkpoint.name if tta == "none" else f"{checkpoint.name} tta={tta}"


def _how_to_fit(checkpoint: Path, tta: str) -> str:
    choice = "" if checkpoint.stem == "best" else f" ckpt={checkpoint.stem}"
    choice += "" if tta == "none" else f" tta={tta}"
    return f"python src/eval.py run=RUN{choice} calibrate=true fits one"


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
