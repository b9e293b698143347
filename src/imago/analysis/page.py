"""Write HTML pages that load nothing from the network, with images embedded in the page."""

import base64
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imago.analysis.evaluation import Evaluation
from imago.errors import DataError
from imago.files import write_text
from imago.images import MAX_SMALL_PX
from imago.runs.records import RunRecord
from imago.text import count_text, duration_text, metric_text, percent_text, range_text

_THUMBNAIL_PX = 160  # longer side; 25 of them as JPEG take about 200 kB; our own choice
_JPEG_QUALITY = 82  # of thumbnails; our own choice
_MAX_DIFFERENCE = 5e-5  # of a metric on a GPU and on a CPU: half of the last decimal that is shown; our own choice
_MAX_FIGURE_BYTES = 1_500_000  # larger figures are listed by name, which keeps a page small; our own choice


def write_page(template: str, context: Mapping[str, Any], file: Path) -> None:
    """Render a template and write the page atomically.

    Args:
        template: the name of a file in `templates/`.
        context: the variables of the template; texts are escaped.
        file: the page; its directory is created if necessary.

    Raises:
        DataError: if it cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent_text
    text = environment.get_template(template).render(context)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A page has to be valid UTF-8, so bytes of file names that are not are escaped.
        write_text(file.absolute(), text.encode("utf-8", "backslashreplace").decode())
    except OSError as error:
        raise DataError(
            f"output={file} cannot be written: {error.strerror}; name another file, output=FILE.html."
        ) from error


def main_results(record: RunRecord, evaluation: Evaluation | None = None) -> list[tuple[str, str, str]]:
    """Return name, value and note of the main results of a run.

    Args:
        record: the run.
        evaluation: has the intervals of further metrics, which are shown where it measured the same value as the run.
    """
    interval, tta = range_text(record.test_low, record.test_high), final_test_tta(record)
    wait_share = record.data_wait_share
    tested = f"95 %: {interval}, n = {count_text(record.num_test_images)}" if interval else ""
    cards = [
        ("test accuracy", percent_text(record.test_acc), tested + (f", with tta={tta}" if tta != "none" else "")),
        ("best val accuracy", percent_text(record.val_acc), f"epoch {record.best_epoch}" if record.best_epoch else ""),
        ("time", duration_text(record.seconds), f"epochs: {record.epochs}" if record.epochs else ""),
        (
            "images/s",
            count_text(record.images_per_s),
            f"{percent_text(wait_share)} of the time waiting for data" if wait_share else "",
        ),
    ]
    return [card for card in cards if card[1]] + _metric_results(record, evaluation)


def _metric_results(record: RunRecord, evaluation: Evaluation | None) -> list[tuple[str, str, str]]:
    """Return name, value and note of the metrics besides the accuracy; of the losses only without an accuracy."""
    measured = {f"{evaluation.directory.name}/{row[0]}": row for row in evaluation.metrics} if evaluation else {}
    results = []
    for name, value in sorted(record.metrics.items(), key=lambda item: item[0].partition("/")[::-1]):
        _, in_evaluation, interval = measured.get(name, (name, math.inf, ""))
        notes = [f"95 %: {interval}"] if abs(in_evaluation - value) < _MAX_DIFFERENCE else []
        if name.startswith("test/"):
            notes += [f"n = {count_text(record.num_test_images)}"] if record.num_test_images else []
        elif record.best_epoch:
            notes.append(f"epoch {record.best_epoch}")
        if not name.endswith("/loss") or record.val_acc is None:
            results.append((name, metric_text(value), ", ".join(notes)))
    return results


def final_test_tta(record: RunRecord) -> str:
    """Return the `tta` of the final test; "none" means no test-time augmentation."""
    return str(record.settings.get("tta") or "none")


def read_or_none(notes: list[str], read: Callable[..., Any], *arguments: Any) -> Any:
    """Return `read(*arguments)`; on a DataError, append its message to `notes` and return None."""
    try:
        return read(*arguments)
    except DataError as error:
        notes.append(str(error))
        return None


def thumbnail_uri(pixels: np.ndarray) -> str:
    """Encode an image uint8 (H, W, 3) as a data URI: a small one as PNG, a larger one as a JPEG thumbnail."""
    image, data = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) <= MAX_SMALL_PX:
        image.save(data, "PNG", optimize=True)
        return _data_uri("image/png", data.getvalue())
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    image.save(data, "JPEG", quality=_JPEG_QUALITY)
    return _data_uri("image/jpeg", data.getvalue())


def figure_uri(file: Path) -> str | None:
    """Encode a PNG file as a data URI; return None if it is too large for a page or not PNG."""
    if file.stat().st_size > _MAX_FIGURE_BYTES:
        return None
    data = file.read_bytes()
    return _data_uri("image/png", data) if data.startswith(b"\x89PNG") else None


def _data_uri(mime_type: str, data: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"
