"""What `eval.py` leaves in its folder: numbers, tables, figures, and the images of the worst mistakes."""

import csv
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imago.errors import DataError
from imago.files import write_json
from imago.inference.run_split import split_images
from imago.statistics.metrics import Result, worst_mistakes

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule

NUM_KEPT = 50  # images of mistakes; a page shows the worst 25
_FIGURES = ("confusion.png", "reliability.png")


def write_results(folder: Path, result: Result, facts: Mapping[str, Any], data: "ImageDataModule") -> list[str]:
    """Write facts, tables and figures; gives the names of the files.

    Args:
        folder: made if it is not there; older results in it are replaced.
        result: of `run_split`.
        facts: go into metrics.json; `split` tells which images these are.
        data: they are taken from.

    Raises:
        DataError: if it cannot be written.
    """
    split, counts = facts["split"], result.confusion.tolist()
    title = f"{split}: {result.is_right.mean():.2%} of {len(result.labels):,} images right"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metrics.json", facts)
        _write_csv(folder / "per_class.csv", _per_class_rows(result))
        header = ["true class \\ predicted", *result.class_names]
        lines = ([name, *row] for name, row in zip(result.class_names, counts, strict=True))
        _write_csv(folder / "confusion.csv", [header, *lines])
        _write_csv(folder / "predictions.csv", _prediction_rows(result, image_names(data, split)))
        written = ["metrics.json", "per_class.csv", "confusion.csv", "predictions.csv"]
        written += _write_mistakes(folder / "mistakes.npz", result, data, split)
        if importlib.util.find_spec("matplotlib") is None:
            return [*written, f"but no {' and '.join(_FIGURES)}, as matplotlib is not installed"]
        _write_figures(folder, result, title)
        return [*written, *_FIGURES]
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}; name another folder, output=DIR.") from error


def image_names(data: "ImageDataModule", split: str) -> list[str]:
    """Give the images of a split: the paths of files, or the names that images in memory have."""
    from imago.data.dataset import LabeledFiles

    parts = [part for _, part in split_images(data, split)]
    return [str(name) for part in parts for name in (part.paths if isinstance(part, LabeledFiles) else part.names)]


def images_in_memory(data: "ImageDataModule", split: str, rows: Sequence[int]) -> dict[int, np.ndarray]:
    """Give some images, uint8 (H, W, 3) by row, of a data set whose images are no files; else nothing."""
    from imago.data.dataset import LabeledArray

    parts = [part for _, part in split_images(data, split)]
    arrays = [part.images for part in parts if isinstance(part, LabeledArray)]
    if len(arrays) < len(parts):
        return {}
    starts = np.cumsum([0, *map(len, arrays)])
    found = {}
    for row in rows:
        place = int(np.searchsorted(starts, row, side="right")) - 1
        found[row] = arrays[place][row - starts[place]].transpose(1, 2, 0)
    return found


def _write_mistakes(file: Path, result: Result, data: "ImageDataModule", split: str) -> list[str]:
    rows = worst_mistakes(result.is_right, result.confidence, NUM_KEPT)
    samples = images_in_memory(data, split, rows.tolist())
    if not samples:
        file.unlink(missing_ok=True)  # of an older evaluation, whose rows are others
        return []
    np.savez_compressed(file, rows=rows, images=np.stack([samples[row] for row in rows.tolist()]))
    return [file.name]


def _write_figures(folder: Path, result: Result, title: str) -> None:
    from imago.analysis.plots import draw_reliability, save_confusion, save_figure
    from imago.statistics.calibration import reliability

    save_confusion(result.confusion, result.class_names, title, folder / "confusion.png")
    diagram = reliability(result.confidence, result.is_right)
    save_figure(draw_reliability(diagram, title), folder / "reliability.png")


def _per_class_rows(result: Result) -> Iterable[Sequence[Any]]:
    yield "class", "precision", "recall", "f1", "n"
    scores = result.per_class
    columns = (scores.precision, scores.recall, scores.f1)
    for place, name in enumerate(result.class_names):
        yield name, *(round(float(column[place]), 6) for column in columns), int(scores.count[place])


def _prediction_rows(result: Result, samples: Sequence[str]) -> Iterable[Sequence[Any]]:
    yield "image", "true", "predicted", "probability"
    names = result.class_names
    columns = (samples, result.labels, result.predicted, result.confidence)
    for image, true, predicted, probability in zip(*columns, strict=True):
        yield image, names[true], names[predicted], f"{probability:.6f}"


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    # `surrogateescape` gives a file name that is no UTF-8 back as it is on the disk.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
