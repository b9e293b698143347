"""Read the results of `eval.py` in a run directory: predictions, class names, metrics and images of mistakes."""

import csv
import os
import shlex
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imago.errors import DataError
from imago.files import cell_text, open_text, read_json, sha256_of
from imago.images import read_image
from imago.paths import checkpoint_file, command
from imago.runs.records import read_settings
from imago.statistics.conformal import PREDICTION_SETS_KEY, class_cells, describe_sets
from imago.statistics.metrics import Predictions
from imago.text import metric_text

_MAX_MISTAKES_BYTES = 100_000_000  # of mistakes.npz, unpacked: 50 images, of 128 px; our own choice


@dataclass(frozen=True)
class Evaluation(Predictions):
    """Predictions of a network for N images."""

    directory: Path  # RUN/eval/SPLIT
    metadata: Mapping[str, Any]  # content of its `metrics.json`
    class_names: tuple[str, ...]  # K names; the index of a name is its label
    image_names: tuple[str, ...]  # N paths of files, or indices in the split for images that are not files
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    groups: np.ndarray | None = None  # name of the group of each image, str (N,), if the run has groups
    image_root: str | None = None  # files that are not below it are not read; None: any file is

    @property
    def metrics(self) -> list[tuple[str, float, str]]:
        """The name, value and 95 % interval of each metric besides the accuracy."""
        intervals = {key.removesuffix("_interval_95"): value for key, value in self.metadata.items()}
        return [
            (name, self.metadata[name], " to ".join(map(metric_text, interval)))
            for name, interval in intervals.items()
            if f"{name}_interval_95" in self.metadata
        ]

    def relative_names(self) -> tuple[str, ...]:
        """Return the image names relative to the root of the dataset, so that they stay the same when it is moved."""
        root = str(self.metadata.get("data_root") or "").rstrip("/")
        return tuple(name.removeprefix(f"{root}/") if root else name for name in self.image_names)

    @property
    def data_notes(self) -> list[str]:
        """A note if this is the run's own dataset, but it has changed since the training."""
        run = self.directory.parents[1]
        is_changed = read_json(run / "provenance.json").get("data") not in (None, self.metadata.get("data_fingerprint"))
        return (
            [f"the dataset of {run} changed before {self.directory}; the test images may differ"] if is_changed else []
        )


def eval_command(run: Path | str, split: str = "test") -> str:
    """Return the `eval.py` command that writes the files which `load_evaluation` reads, or "" if it would refuse."""
    commands = read_json(Path(run) / "provenance.json").get("commands")
    if isinstance(commands, list) and "eval" not in commands:
        return ""
    # Nothing else of the file: it may be untrusted, and the command is pasted into a shell.
    return f"{command('eval')} run={shlex.quote(str(run))}" + (f" split={split}" if split != "test" else "")


def load_evaluation(run: Path | str, split: str = "test") -> Evaluation:
    """Read `eval/<split>` of a run directory.

    Raises:
        DataError: if the run cannot be evaluated; if the results are missing, damaged, or of another checkpoint than
            the present best.ckpt, which a resumed run replaces, with the command that creates them.
    """
    directory, command = Path(run) / "eval" / split, eval_command(run, split)
    if not command:
        raise DataError(f"{run}: eval.py takes no run of this task; the result of its own test is in summary.json")
    try:
        rows, classes = _read_csv(directory / "predictions.csv"), _read_csv(directory / "per_class.csv")
        class_names = tuple(row["class"] for row in classes)
        indices = {name: index for index, name in enumerate(class_names)}
        image_names = tuple(row["image"] for row in rows)
        labels, predicted = (np.array([indices[row[name]] for row in rows], np.int64) for name in ("true", "predicted"))
        probability = np.array([row["probability"] for row in rows], np.float64)
        groups = np.array([row["group"] for row in rows]) if rows and "group" in rows[0] else None
        if not rows or len(indices) < len(class_names):
            raise ValueError("predictions.csv is empty, or per_class.csv has a class twice")
        metadata = read_json(directory / "metrics.json")
        for key in [key for key in metadata if key.endswith("interval_95")]:
            low, high = metadata[key]
            sum([low, high, 0 if key == "interval_95" else metadata[key.removesuffix("_interval_95")]])  # of numbers
        sets = metadata.get(PREDICTION_SETS_KEY) or {}
        _ = describe_sets(sets), [class_cells(sets, name) for name in class_names]
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing; create it with: {command}") from None
    except (OSError, LookupError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{directory} is damaged: {error!r}; delete it and evaluate again: {command}") from None
    best = checkpoint_file(Path(run))
    if best.is_file() and metadata.get("model_sha256") != sha256_of(best):
        raise DataError(
            f"{directory} is not of the present {best.name}, but of another checkpoint; renew it: {command}"
        )
    outputs = labels, predicted, probability, groups
    return Evaluation(directory, metadata, class_names, image_names, *outputs, _image_root(Path(run)))


def _image_root(run: Path) -> str:
    """Return the directory of the images by the run's config.yaml, "" without one: a stranger may name any file."""
    settings = {}
    with suppress(DataError):
        settings = read_settings(run)
    root = settings.get("data.root") or os.path.dirname(str(settings.get("data.list_file") or ""))
    return os.path.abspath(os.path.expanduser(str(root))) if root else ""


def saved_images(evaluation: Evaluation) -> dict[int, np.ndarray]:
    """Read the misclassified images from `mistakes.npz`, which `eval.py` writes for datasets in memory.

    Return uint8 (H, W, 3) by index in the evaluation, empty without that file; raise a DataError if it is damaged.
    """
    file = evaluation.directory / "mistakes.npz"
    if not file.exists():
        return {}
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            num_bytes = sum(member.file_size for member in arrays.zip.infolist())
            if num_bytes > _MAX_MISTAKES_BYTES:
                raise ValueError(f"it holds {num_bytes:,} bytes, more than {_MAX_MISTAKES_BYTES:,}")
            indices, images = arrays["rows"], arrays["images"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (N, H, W, 3)")
        return dict(zip(indices.tolist(), images, strict=True))
    except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} is damaged: {error}; delete it and evaluate again.") from None


def load_image(evaluation: Evaluation, index: int, saved: Mapping[int, np.ndarray]) -> tuple[np.ndarray | None, str]:
    """Return the pixels of an image, uint8 (H, W, 3), and ""; or None and the reason. `saved`: see `saved_images`."""
    if index in saved:
        return saved[index], ""
    name, root = evaluation.image_names[index], evaluation.image_root
    path = Path(name if root is None else os.path.normpath(name))
    if root is not None and not (root and path.is_relative_to(root)):
        return None, f"{name} is not read: it is not below {root or 'a directory of images'}, data.root of the run"
    try:
        return read_image(path), ""
    except DataError as error:
        return None, str(error)


def _read_csv(file: Path) -> list[dict[str, str]]:
    with open_text(file) as lines:
        header, *rows = ([cell_text(cell) for cell in row] for row in csv.reader(lines, strict=True))
    return [dict(zip(header, row, strict=True)) for row in rows]
