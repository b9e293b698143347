"""Print predictions as a table, and write them as CSV and JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imago.errors import DataError
from imago.files import write_csv, write_json
from imago.text import display_width, padded, printable

_MAX_LISTED = 20  # images that fit on a screen; the files have all of them
_MAX_NAME_CHARS = 60  # of an image on the screen
_NO_ANSWER = "(below threshold)"


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first, with probabilities in [0, 1].

    Attributes:
        answer: the first class, or None if it is less probable than the threshold.
    """

    image: Path
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    answer: str | None

    @property
    def top_k(self) -> list[tuple[str, float]]:
        """Classes with their probabilities, best first."""
        return list(zip(self.class_names, self.probabilities, strict=True))


@dataclass(frozen=True)
class UnreadableImage:
    """An image that could not be read, and why."""

    image: Path
    reason: str


def write_predictions(
    file: Path,
    predictions: Sequence[Prediction],
    bad: Sequence[UnreadableImage],
    info: Mapping[str, Any],
    top_k: int,
) -> None:
    """Write a CSV file with one line per readable image, and the same with the unreadable images as JSON.

    CSV: `file, answer, class_1, probability_1, class_2, ...`, best first; `answer` is empty below the threshold.

    Args:
        file: the CSV file; the JSON file has the same name with .json.
        predictions: in the order of the images.
        bad: the images that could not be read.
        info: first keys of the JSON, such as the model.
        top_k: number of classes per image.

    Raises:
        DataError: if the files cannot be written.
    """
    columns = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("class", "probability")]
    records = [
        {
            "file": str(prediction.image),
            "answer": prediction.answer,
            "top_k": [{"class": name, "probability": round(share, 6)} for name, share in prediction.top_k],
        }
        for prediction in predictions
    ]
    unreadable = [{"file": str(image.image), "reason": image.reason} for image in bad]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_csv(file, [["file", "answer", *columns], *map(_row, predictions)])
        write_json(file.with_suffix(".json"), {**info, "predictions": records, "bad": unreadable})
    except OSError as error:
        raise DataError(
            f"{printable(file)} cannot be written: {error.strerror}; choose another file with output=FILE.csv."
        ) from error


def table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Yield a heading and one line per image: its name, the predicted class, and the next classes.

    Args:
        predictions: at least one.
    """
    shown = predictions[:_MAX_LISTED]
    images = [_shortened(printable(prediction.image)) for prediction in shown]
    answers = [printable(prediction.answer or _NO_ANSWER) for prediction in shown]
    width, class_width = (max(map(display_width, column)) for column in (["image", *images], ["class", *answers]))
    has_more = any(len(prediction.class_names) > 1 or not prediction.answer for prediction in shown)
    yield f"{'image':<{width}}  {'class':<{class_width}}  probability" + ("   then" if has_more else "")
    for image, answer, prediction in zip(images, answers, shown, strict=True):
        others = prediction.top_k[1:] if prediction.answer else prediction.top_k
        then = ", ".join(f"{printable(name)} {share:.1%}" for name, share in others)
        best = prediction.probabilities[0]
        yield f"{padded(image, width)}  {padded(answer, class_width)}  {best:>11.2%}   {then}".rstrip()
    if len(predictions) > len(shown):
        yield f"... and {len(predictions) - len(shown):,} more"


def _row(prediction: Prediction) -> list[Any]:
    cells = [cell for name, share in prediction.top_k for cell in (name, f"{share:.6f}")]
    return [prediction.image, prediction.answer or "", *cells]


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else f"...{name[3 - _MAX_NAME_CHARS :]}"
