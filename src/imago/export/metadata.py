"""What every exported file says of itself: classes, preprocess record, temperature, run, and digests of its files."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imago import onnx_classifier
from imago.errors import DataError
from imago.files import read_json, sha256_of, write_json
from imago.paths import METADATA_FILE, checkpoint_file
from imago.statistics.conformal import PREDICTION_SETS_KEY
from imago.statistics.unknown_images import UNKNOWN_DETECTOR_KEY

if TYPE_CHECKING:
    from imago.model.classifier import Classifier

FORMAT_KEY, NETWORK_KEY, FILES_KEY = "format", "network", "files"
PRECISION_KEY = onnx_classifier.PRECISION_KEY
_HOW_TO_EXPORT = "export it again with python src/export.py run=RUN"


def build_metadata(
    classifier: "Classifier", run_metadata: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Return metadata by the keys of `imago.onnx_classifier`.

    `run_metadata` have `run_id` and `metrics`; `versions` are those of the format's packages.
    """
    return {
        onnx_classifier.CLASS_NAMES_KEY: list(classifier.class_names),
        onnx_classifier.PREPROCESS_KEY: classifier.preprocess.to_dict(),
        onnx_classifier.TEMPERATURE_KEY: classifier.calibration_temperature,
        **({PREDICTION_SETS_KEY: asdict(classifier.prediction_sets)} if classifier.prediction_sets else {}),
        **({UNKNOWN_DETECTOR_KEY: classifier.unknown_detector.to_dict()} if classifier.unknown_detector else {}),
        onnx_classifier.PREDICTS_CLASSES_KEY: classifier.predicts_classes,
        onnx_classifier.VERSIONS_KEY: {"torch": version("torch"), **versions},
        **run_metadata,
    }


def metrics_of(run: Path, checkpoint: Path) -> dict[str, Any]:
    """Return the run's val and test accuracy, number of images and interval; they are of the best checkpoint only.

    They are with one view of each image, as files predict: if those of the run are with several (`tta`), of `eval.py`.
    There are none while a run has not ended: its best checkpoint may be newer than its results.
    """
    summary, results = read_json(run / "summary.json"), {}
    if checkpoint != checkpoint_file(run) or summary.get("status") in ("running", "failed"):
        return {}
    for split in ("val", "test"):
        found = summary.get(split)
        if isinstance(found, dict) and "tta" in found:
            found = read_json(run / "eval" / split / "metrics.json")
            digest = sha256_of(checkpoint) if checkpoint.is_file() else ""
            found = found if (found.get("tta"), found.get("model_sha256")) == ("none", digest) else None
        if isinstance(found, dict):
            results[split] = {key: found[key] for key in ("acc", "interval_95", "num_images") if key in found}
    return results


def write_metadata(directory: Path, values: Mapping[str, Any]) -> None:
    """Write metadata.json with `values`, the schema, and the SHA-256 of each file of the directory."""
    digests = {file.name: sha256_of(file) for file in sorted(directory.iterdir()) if file.name != METADATA_FILE}
    schema = {onnx_classifier.SCHEMA_KEY: onnx_classifier.SCHEMA_VERSION}
    write_json(directory / METADATA_FILE, {**values, **schema, FILES_KEY: digests})


def read_metadata(directory: Path) -> dict[str, Any]:
    """Read metadata.json of an exported directory, and check its schema and the digest of each file.

    Raises:
        DataError: if it is missing, of another schema, or a file is missing or has other content.
    """
    values = read_json(directory / METADATA_FILE)
    if (schema := values.get(onnx_classifier.SCHEMA_KEY)) != onnx_classifier.SCHEMA_VERSION:
        wanted = f"schema {onnx_classifier.SCHEMA_VERSION}"
        raise DataError(f"{directory / METADATA_FILE} has schema {schema}, not {wanted}; {_HOW_TO_EXPORT}.")
    for name, digest in values[FILES_KEY].items():
        file = directory / name
        if not file.is_file() or sha256_of(file) != digest:
            raise DataError(f"{file} is missing, or was changed after its export; {_HOW_TO_EXPORT}.")
    return values
