"""Print predictions as a table, and write them as CSV and JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imago.files import report_unwritable, write_csv, write_json
from imago.text import display_width, padded, printable

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


def table_lines(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Yield a heading and one line per image, at least one: name, predicted class, next classes, short set, mark."""
    shown = predictions[:_MAX_LISTED]
    images = [printable(prediction.image) for prediction in shown]
    images = [name if len(name) <= _MAX_NAME_CHARS else f"...{name[3 - _MAX_NAME_CHARS :]}" for name in images]
    names = [printable(prediction.predicted or _BELOW_THRESHOLD) for prediction in shown]
    width, class_width = (max(map(display_width, column)) for column in (["image", *images], ["class", *names]))
    others = [prediction.best_classes[1:] if prediction.predicted else prediction.best_classes for prediction in shown]
    yield f"{'image':<{width}}  {'class':<{class_width}}  probability" + ("   next classes" if any(others) else "")
    for image, predicted, prediction, classes in zip(images, names, shown, others, strict=True):
        next_classes = ", ".join(f"{printable(name)} {probability:.1%}" for name, probability in classes)
        level, members = next(iter(prediction.sets.items()), ("", []))
        if 0 < len(members) <= _MAX_SET:
            next_classes += f"   {level} % set: {', '.join(map(printable, members))}"
        next_classes += "   unlike the training images" if (prediction.score or 0) < 0 else ""
        best = prediction.best_classes[0][1]
        yield f"{padded(image, width)}  {padded(predicted, class_width)}  {best:>11.2%}   {next_classes}".rstrip()
    if len(predictions) > len(shown):
        yield f"... and {len(predictions) - len(shown):,} more"
