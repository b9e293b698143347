"""What `eval.py` left in a run's folder, image by image: answers, counts and the worst mistakes."""

import csv
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imago.errors import DataError
from imago.files import read_json
from imago.images import read_image
from imago.statistics.metrics import Answers, worst_mistakes

_COLUMNS = ("image", "true", "predicted", "probability")


@dataclass(frozen=True)
class Evaluation(Answers):
    """What a network said about N images of K classes.

    Attributes:
        folder: where it lies.
        facts: its `metrics.json`.
        class_names: K names.
        images: N files, or places in the split for images that are no files.
        labels: true classes, int64 (N,).
        predicted: what they were taken for, int64 (N,).
        probability: of the predicted class, float64 (N,).
    """

    folder: Path
    facts: Mapping[str, Any]
    class_names: tuple[str, ...]
    images: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray

    def worst_mistakes(self, limit: int) -> np.ndarray:
        """Give the rows of the mistakes the network was surest of, surest first, int64 (at most `limit`,)."""
        return worst_mistakes(self.is_right, self.probability, limit)

    def names(self) -> tuple[str, ...]:
        """Give the images by what stays the same where the data set lies in another folder."""
        root = str(self.facts.get("data_root") or "").rstrip("/\\")
        inside = (f"{root}/", f"{root}\\")
        return tuple(name[len(root) + 1 :] if root and name.startswith(inside) else name for name in self.images)


def eval_command(run: Path | str, split: str = "test") -> str:
    """Give the command that makes what `load_evaluation` reads."""
    return f"python src/eval.py run={shlex.quote(str(run))}" + (f" split={split}" if split != "test" else "")


def load_evaluation(run: Path | str, split: str = "test") -> Evaluation:
    """Read `eval/<split>` of a run.

    Args:
        run: the run's folder.
        split: which images were evaluated.

    Raises:
        DataError: if it is not there, telling how to make it, or damaged.
    """
    folder = Path(run) / "eval" / split
    rows = _rows(folder / "predictions.csv", eval_command(run, split))
    names = tuple(row["class"] for row in _rows(folder / "per_class.csv", eval_command(run, split)))
    places = {name: place for place, name in enumerate(names)}
    try:
        sample, true, predicted, probability = ([row[name] for row in rows] for name in _COLUMNS)
        labels = np.array([places[name] for name in true], np.int64)
        taken_for = np.array([places[name] for name in predicted], np.int64)
        sureness = np.array(probability, np.float64)
    except (KeyError, ValueError) as error:
        raise DataError(f"{folder / 'predictions.csv'} is damaged: {error!r}; delete {folder} and redo it.") from None
    if not rows:
        raise DataError(f"{folder / 'predictions.csv'} is empty; make it again: {eval_command(run, split)}")
    return Evaluation(folder, read_json(folder / "metrics.json"), names, tuple(sample), labels, taken_for, sureness)


def saved_images(evaluation: Evaluation) -> dict[int, np.ndarray]:
    """Read the mistakes of a data set whose images are no files, from `mistakes.npz` beside the predictions.

    Returns:
        uint8 (H, W, 3) by the row in `predictions.csv`; empty where there is no such file.

    Raises:
        DataError: if it is damaged.
    """
    file = evaluation.folder / "mistakes.npz"
    if not file.exists():
        return {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            rows, images = arrays["rows"], arrays["images"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is damaged: {error}; delete it and evaluate again.") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(rows) != len(images):
        raise DataError(f"{file} is damaged: it holds no uint8 images (N, H, W, 3); delete it and evaluate again.")
    return {int(row): image for row, image in zip(rows, images, strict=True)}


def load_image(evaluation: Evaluation, row: int, saved: Mapping[int, np.ndarray]) -> tuple[np.ndarray | None, str]:
    """Give an image's pixels, uint8 (H, W, 3), or None and why there are none.

    Args:
        evaluation: of `load_evaluation`.
        row: in `predictions.csv`.
        saved: of `saved_images`.
    """
    name = evaluation.images[row]
    if row in saved:
        return saved[row], ""
    if name.isdecimal():  # its place in the split
        return None, "no file: evaluate again to keep the images of its mistakes"
    try:
        return read_image(Path(name)), ""
    except DataError as error:
        return None, str(error)


def _rows(file: Path, command: str) -> list[dict[str, str]]:
    try:
        # `surrogateescape` keeps a file name that is no UTF-8 as it is on the disk.
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
            return list(csv.DictReader(lines))
    except FileNotFoundError:
        raise DataError(f"{file} is missing; make it with: {command}") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
