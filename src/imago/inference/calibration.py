"""Fit temperature, prediction sets and detector of a checkpoint on val; keep them in calibration.json next to it."""

import hashlib
import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imago.errors import DataError
from imago.files import read_json, report_unwritable, sha256_of, write_json
from imago.paths import command, short_path
from imago.statistics.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    TEMPERATURE_KEY,
    UNCALIBRATED,
    fit_temperature,
    nll,
    reliability,
)
from imago.statistics.conformal import PREDICTION_SETS_KEY, PredictionSets, fit_sets, missing_sets_note
from imago.statistics.metrics import LabeledOutputs, best_probability
from imago.statistics.unknown_images import UNKNOWN_DETECTOR_KEY, UnknownDetector, fit_detector, missing_detector_note
from imago.text import counted

CALIBRATION_FILE = "calibration.json"  # one entry for each checkpoint file and `tta` setting


def calibrate(checkpoint: Path, result: LabeledOutputs, tta: str = "none") -> dict[str, Any]:
    """Fit temperature, sets and detector to the outputs for the validation images; write them to `calibration.json`.

    A temperature that makes the probabilities of these images worse, or that is at the bound of the search, is not
    applied: the entry has UNCALIBRATED. Each setting `tta` has its own: the mean of several views is less confident.

    Returns:
        The entry: applied and fitted temperature, negative log-likelihood (in nats) and expected calibration error
        without and with the fitted one, the prediction sets, and the detector of unknown images.

    Raises:
        DataError: if it cannot be written.
    """
    temperature = fit_temperature(result.logits, result.labels)
    entry: dict[str, Any] = {TEMPERATURE_KEY: temperature, "fitted_temperature": temperature}
    entry |= {"split": "val", "num_images": len(result.labels)}
    for when, divisor in (("before", UNCALIBRATED), ("after", temperature)):
        probability = best_probability(result.logits, divisor)
        entry[f"nll_{when}"] = nll(result.logits, result.labels, divisor)
        entry[f"ece_{when}"] = reliability(probability, result.is_correct).ece
    is_worse = entry["nll_after"] > entry["nll_before"] or entry["ece_after"] > entry["ece_before"]
    if is_worse or _is_at_bound(temperature):
        entry[TEMPERATURE_KEY] = UNCALIBRATED
    entry[PREDICTION_SETS_KEY] = asdict(fit_sets(result.logits, result.labels))
    detector = fit_detector(result.logits, result.labels)
    entry |= {UNKNOWN_DETECTOR_KEY: detector.to_dict()} if detector else {}
    entry["checkpoint_sha256"] = sha256_of(checkpoint)
    file = checkpoint.with_name(CALIBRATION_FILE)
    with report_unwritable(file):
        write_json(file, read_json(file) | {_entry_name(checkpoint, tta): entry})
    return entry


def describe_calibration(entry: Mapping[str, Any], tta: str = "none") -> str:
    """Return the temperature of an entry, its effect on val, whether it is applied, and what is missing."""
    missing = missing_sets_note(PredictionSets.from_dict(entry.get(PREDICTION_SETS_KEY)))
    notes = [missing, missing_detector_note(entry.get(UNKNOWN_DETECTOR_KEY))]
    note = "".join(f"; {text}" for text in notes if text)
    if _is_at_bound(entry["fitted_temperature"]):
        return (
            f"not calibrated: the temperature {entry['fitted_temperature']:.3f} that fits "
            f"{counted(entry['num_images'], 'image')} of val is at the bound of the search; more images may give one"
            f"{note}"
        )
    is_applied = entry[TEMPERATURE_KEY] == entry["fitted_temperature"]
    worse = "the calibration error (ECE)" if entry["ece_after"] > entry["ece_before"] else "the likelihood (NLL)"
    unused = f"not calibrated: temperature {entry['fitted_temperature']:.3f} would make {worse} on val worse"
    applied = f"calibrated on val (tta={tta}): temperature {entry['fitted_temperature']:.3f}"
    return (
        f"{applied if is_applied else unused}: ECE "
        f"{entry['ece_before']:.2%} -> {entry['ece_after']:.2%}, NLL {entry['nll_before']:.4f} -> "
        f"{entry['nll_after']:.4f}{note}"
    )


def read_temperature(checkpoint: Path, tta: str = "none") -> tuple[float, str]:
    """Return the temperature of a checkpoint with these views and an empty text, or UNCALIBRATED and the reason.

    Raises:
        DataError: if the temperature in `calibration.json` is not a positive number.
    """
    file, name = checkpoint.with_name(CALIBRATION_FILE), _entry_name(checkpoint, tta)
    is_in_run = checkpoint.parent.name == "checkpoints"
    choice = f" ckpt={checkpoint.stem}" if is_in_run and checkpoint.stem != "best" else ""
    choice += "" if tta == "none" else f" tta={tta}"
    run_argument = shlex.quote(f"run={short_path(checkpoint.parents[1] if is_in_run else checkpoint)}")
    remedy = f"fit one with {command('eval')} {run_argument}{choice} calibrate=fit"
    entry = read_json(file).get(name)
    if entry is None:
        return UNCALIBRATED, f"{file} has no temperature for {name}; {remedy}"
    temperature = entry.get(TEMPERATURE_KEY) if isinstance(entry, dict) else None
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise DataError(f"{file} is damaged: {TEMPERATURE_KEY} of {name} is {temperature!r}; delete it, and {remedy}.")
    if entry.get("checkpoint_sha256") != sha256_of(checkpoint):
        return UNCALIBRATED, f"{file} was fitted for another {checkpoint.name}; {remedy}"
    return float(temperature), ""


def checkpoint_digests(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of a checkpoint file, and of what was fitted for it with one view, for reports of exports."""
    entry = read_json(checkpoint.with_name(CALIBRATION_FILE)).get(checkpoint.name)
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    return {"checkpoint_sha256": sha256_of(checkpoint), "calibration_sha256": digest}


def read_sets(checkpoint: Path, tta: str = "none") -> PredictionSets | None:
    """Return the prediction sets of an entry that `read_temperature` has found, None if it has none.

    Raises:
        DataError: if they are damaged.
    """
    return _read(checkpoint, tta, PREDICTION_SETS_KEY, PredictionSets.from_dict)


def read_detector(checkpoint: Path, num_classes: int, tta: str = "none") -> UnknownDetector | None:
    """Return the detector of unknown images, as `read_sets` returns the sets."""
    return _read(checkpoint, tta, UNKNOWN_DETECTOR_KEY, lambda values: UnknownDetector.from_dict(values, num_classes))


def _read(checkpoint: Path, tta: str, key: str, from_dict: Callable[[Any], Any]) -> Any:
    file, name = checkpoint.with_name(CALIBRATION_FILE), _entry_name(checkpoint, tta)
    values = read_json(file)[name].get(key)
    try:
        return from_dict(values)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(f"{file} is damaged: {key} of {name} is {values!r:.100}; delete it.") from error


def _is_at_bound(temperature: float) -> bool:
    return not 1.001 * MIN_TEMPERATURE < temperature < 0.999 * MAX_TEMPERATURE  # the search ends just before; our own


def _entry_name(checkpoint: Path, tta: str) -> str:
    return checkpoint.name if tta == "none" else f"{checkpoint.name} tta={tta}"
