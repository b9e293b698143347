"""What `predict.py` says about each image: as a table on the screen, as CSV and as JSON."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imago.errors import DataError
from imago.text import display_width, padded, printable

_MAX_LISTED = 20  # images that fit on a screen; the files have them all
_MAX_NAME_CHARS = 60  # of an image on the screen
_NO_ANSWER = "(not sure)"


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first, with probabilities in [0, 1].

    Attributes:
        answer: the first of them, or None if it is less probable than the threshold.
    """

    image: Path
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    answer: str | None


@dataclass(frozen=True)
class UnreadableImage:
    """An image that could not be read, and why."""

    image: Path
    reason: str


def write_predictions(
    file: Path,
    predictions: Sequence[Prediction],
    bad: Sequence[UnreadableImage],
    facts: Mapping[str, Any],
    num_columns: int,
) -> None:
    """Write a CSV file, a line for each image that could be read, and beside it the same as JSON with the bad ones.

    CSV: `file, answer, class_1, probability_1, class_2, ...`, best first; `answer` is empty below the threshold.

    Args:
        file: of the CSV; the other one has its name with .json.
        predictions: in the order of the images.
        bad: the images that could not be read.
        facts: what stands on top of the JSON, e.g. which network answered.
        num_columns: classes that each image has.

    Raises:
        DataError: if it cannot be written.
    """
    pairs = (f"{name}_{place}" for place in range(1, num_columns + 1) for name in ("class", "probability"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A reader never sees half a file. `surrogateescape` gives a name that is no UTF-8 back as it is on the disk.
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as content:
            writer = csv.writer(content, lineterminator="\n")
            writer.writerow(["file", "answer", *pairs])
            writer.writerows(_cells(prediction) for prediction in predictions)
        part.replace(file)
        records = {
            "predictions": [_record(prediction) for prediction in predictions],
            "bad": [{"file": str(image.image), "reason": image.reason} for image in bad],
        }
        # ASCII: JSON has no bytes that are no UTF-8, but escapes for the signs that stand for them.
        part.write_text(json.dumps({**facts, **records}, indent=2) + "\n", encoding="ascii")
        part.replace(file.with_suffix(".json"))
    except OSError as error:
        raise DataError(
            f"{printable(file)} cannot be written: {error.strerror}; name another file, output=FILE.csv."
        ) from error


def table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Give one line an image: its name, the answer, and the next classes behind it; at least one image."""
    shown = predictions[:_MAX_LISTED]
    images = [_shortened(printable(prediction.image)) for prediction in shown]
    answers = [printable(prediction.answer or _NO_ANSWER) for prediction in shown]
    width, class_width = (max(map(display_width, column)) for column in (["image", *images], ["class", *answers]))
    has_more = any(len(prediction.class_names) > 1 or not prediction.answer for prediction in shown)
    yield f"{'image':<{width}}  {'class':<{class_width}}  probability" + ("   then" if has_more else "")
    for image, answer, prediction in zip(images, answers, shown, strict=True):
        pairs = list(zip(prediction.class_names, prediction.probabilities, strict=True))
        then = ", ".join(
            f"{printable(name)} {share:.1%}" for name, share in (pairs[1:] if prediction.answer else pairs)
        )
        yield f"{padded(image, width)}  {padded(answer, class_width)}  {pairs[0][1]:>11.2%}   {then}".rstrip()
    if len(predictions) > len(shown):
        yield f"... and {len(predictions) - len(shown):,} more"


def _cells(prediction: Prediction) -> list[Any]:
    pairs = zip(prediction.class_names, prediction.probabilities, strict=True)
    cells = [cell for name, share in pairs for cell in (name, f"{share:.6f}")]
    return [prediction.image, prediction.answer or "", *cells]


def _record(prediction: Prediction) -> dict[str, Any]:
    pairs = zip(prediction.class_names, prediction.probabilities, strict=True)
    top = [{"class": name, "probability": round(share, 6)} for name, share in pairs]
    return {"file": str(prediction.image), "answer": prediction.answer, "top_k": top}


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else f"...{name[3 - _MAX_NAME_CHARS :]}"
