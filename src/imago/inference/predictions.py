"""Print predictions as a table, and write them as CSV and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imago.files import report_unwritable, write_csv, write_json
from imago.text import printable, table_lines

_MAX_LISTED = 20  # images that fit on a screen; the files have all of them
_MAX_NAME_CHARS = 60  # of an image on the screen; our own choice
_MAX_SET = 3  # classes of a prediction set on the screen; our own choice
_BELOW_THRESHOLD = "(below threshold)"


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        image: the file, as typed or found.
        best_classes: names of classes with their probabilities in [0, 1], best first.
        predicted: the first class, or None if it is less probable than the threshold.
        sets: names of the classes of each prediction set, most probable first, by level in percent.
        score: negative if the image is unlike those of the training; None if the network has no `UnknownDetector`.
    """

    image: Path
    best_classes: list[tuple[str, float]]
    predicted: str | None
    sets: Mapping[str, list[str]] = field(default_factory=dict)
    score: float | None = None


def write_predictions(
    file: Path, predictions: Sequence[Prediction], bad_images: Sequence[tuple[Path, str]], metadata: Mapping[str, Any]
) -> None:
    """Write a CSV file with one line per readable image, and the same with the bad images as JSON.

    CSV: `file, predicted, class_1, probability_1, class_2, ...`, best first; `predicted` is empty below the threshold.
    Then `set_90, set_95`, classes joined with "; " (lists in JSON), and `unlike_training`, where the network has them.
    The JSON file has the name of the CSV `file` with .json, and begins with the keys of `metadata`.

    Raises:
        DataError: if the files cannot be written.
    """
    top_k = max((len(prediction.best_classes) for prediction in predictions), default=0)
    header = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("class", "probability")]
    levels = list(predictions[0].sets) if predictions else []
    marked = ["unlike_training"] if any(prediction.score is not None for prediction in predictions) else []
    rows, records = [["file", "predicted", *header, *(f"set_{level}" for level in levels), *marked]], []
    for prediction in predictions:
        image, predicted = str(prediction.image), prediction.predicted
        cells = [cell for name, probability in prediction.best_classes for cell in (name, f"{probability:.6f}")]
        cells += ["; ".join(prediction.sets[level]) for level in levels]
        marks = dict.fromkeys(marked, (prediction.score or 0) < 0)
        rows.append([image, predicted or "", *cells, *(str(mark).lower() for mark in marks.values())])
        best = [{"class": name, "probability": round(probability, 6)} for name, probability in prediction.best_classes]
        sets = {"sets": prediction.sets} if prediction.sets else {}
        records.append({"file": image, "predicted": predicted, "top_k": best, **sets, **marks})
    bad_records = [{"file": str(image), "reason": reason} for image, reason in bad_images]
    with report_unwritable(file, "; choose another file with output=FILE.csv"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_csv(file, rows)
        write_json(file.with_suffix(".json"), {**metadata, "predictions": records, "bad": bad_records})


def prediction_lines(predictions: Sequence[Prediction]) -> list[str]:
    """Return the lines of a table of images, at least one: name, predicted class, next classes, short set, mark."""
    rows = [("image", "class", "probability", "next classes")]
    for prediction in predictions[:_MAX_LISTED]:
        image = printable(prediction.image)
        image = image if len(image) <= _MAX_NAME_CHARS else f"...{image[3 - _MAX_NAME_CHARS :]}"
        others = prediction.best_classes[1:] if prediction.predicted else prediction.best_classes
        level, members = next(iter(prediction.sets.items()), ("", []))
        notes = [", ".join(f"{printable(name)} {probability:.1%}" for name, probability in others)]
        notes += [f"{level} % set: {', '.join(map(printable, members))}"] if 0 < len(members) <= _MAX_SET else []
        notes += ["unlike the training images"] if (prediction.score or 0) < 0 else []
        best, name = f"{prediction.best_classes[0][1]:.2%}", printable(prediction.predicted or _BELOW_THRESHOLD)
        rows.append((image, name, best, "   ".join(filter(None, notes))))
    more = [f"... and {len(predictions) - _MAX_LISTED:,} more"] if len(predictions) > _MAX_LISTED else []
    width = 4 if any(row[3] for row in rows[1:]) else 3
    return table_lines([row[:width] for row in rows], right=[2]) + more
