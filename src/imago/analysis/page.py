"""Write HTML pages that load nothing from the network, with images embedded in the page."""

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imago.analysis.evaluation import Evaluation
from imago.errors import DataError
from imago.files import report_unwritable, write_text
from imago.images import MAX_SMALL_PX
from imago.runs.records import RunRecord
from imago.text import count_text, duration_text, metric_text, percent_text, range_text

_THUMBNAIL_PX = 160  # longer side; 25 of them as JPEG take about 200 kB; our own choice
_JPEG_QUALITY = 82  # of thumbnails; our own choice


def write_page(template: str, context: Mapping[str, Any], file: Path) -> None:
    """Render a file of `templates/` with the variables `context`, whose texts are escaped, and write it atomically.

    Raises:
        DataError: if the page or its directory, which is created if necessary, cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent_text
    text = environment.get_template(template).render(context)
    with report_unwritable(file, "; choose another file with output=FILE.html"):
        file.parent.mkdir(parents=True, exist_ok=True)
        # A page has to be valid UTF-8, so bytes of file names that are not are escaped.
        write_text(file.absolute(), text.encode("utf-8", "backslashreplace").decode())


def main_results(record: RunRecord, evaluation: Evaluation | None = None) -> list[tuple[str, str, str]]:
    """Return name, value and note of the main results of a run; losses only if there is no accuracy.

    `evaluation` has the intervals of further metrics, which are shown where it measured the same value as the run.
    """
    interval, tta = range_text(record.test_low, record.test_high), final_test_tta(record)
    epoch = f"epoch {record.best_epoch}" if record.best_epoch else ""
    num_images = f"n = {count_text(record.num_test_images)}" if record.num_test_images else ""
    tested = [f"95 %: {interval}" if interval else "", num_images, f"with tta={tta}" if tta != "none" else ""]
    wait = f"{percent_text(record.data_wait_share)} of the time waiting for data" if record.data_wait_share else ""
    cards = [
        ("test accuracy", percent_text(record.test_acc), ", ".join(filter(None, tested))),
        ("best val accuracy", percent_text(record.val_acc), epoch),
        ("time", duration_text(record.seconds), f"epochs: {record.epochs}" if record.epochs else ""),
        ("images/s", count_text(record.images_per_s), wait),
    ]
    measured = {f"{evaluation.directory.name}/{row[0]}": row[1:] for row in evaluation.metrics} if evaluation else {}
    for name, value in sorted(record.metrics.items(), key=lambda item: item[0].partition("/")[::-1]):
        same_value, interval = measured.get(name, (None, ""))
        notes = [f"95 %: {interval}" if metric_text(same_value) == metric_text(value) else ""]
        notes.append(num_images if name.startswith("test/") else epoch)
        if not name.endswith("/loss") or record.val_acc is None:
            cards.append((name, metric_text(value), ", ".join(filter(None, notes))))
    return [card for card in cards if card[1]]


def final_test_tta(record: RunRecord) -> str:
    """Return the `tta` of the final test; "none" means no test-time augmentation."""
    return str(record.test_tta or record.settings.get("tta") or "none")


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
        return data_uri("image/png", data.getvalue())
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    image.save(data, "JPEG", quality=_JPEG_QUALITY)
    return data_uri("image/jpeg", data.getvalue())


def data_uri(mime_type: str, data: bytes) -> str:
    """Encode a file as a data URI."""
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"
