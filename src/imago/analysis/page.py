"""HTML pages that load nothing from anywhere: templates, and images inside the page itself."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imago.errors import DataError
from imago.images import SMALL_PX

_TEMPLATES = Path(__file__).parent / "templates"
_THUMBNAIL_PX = 160  # longer side; 25 of them as JPEG are some 200 kB
_MAX_FIGURE_BYTES = 1_500_000  # a larger figure is named instead: pages should stay small enough to be mailed


def write_page(template: str, facts: Mapping[str, Any], file: Path) -> None:
    """Fill in a template and write the page under another name first: a reader never sees half of it.

    Args:
        template: a file in `templates/`.
        facts: what it tells; texts are escaped.
        file: its folder is made if it is not there.

    Raises:
        DataError: if it cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: "" if share is None else f"{100 * share:.2f} %"
    text = environment.get_template(template).render(facts)
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is no UTF-8 cannot stand in a page as it is.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(file)
    except OSError as error:
        raise DataError(f"output={file} cannot be written: {error.strerror}.") from error


def thumbnail_uri(pixels: np.ndarray) -> str:
    """Turn an image into the text of an `img`'s `src`; small images keep every pixel.

    Args:
        pixels: uint8 (H, W, 3).
    """
    image = Image.fromarray(pixels)
    data = io.BytesIO()
    if max(image.size) <= SMALL_PX:
        image.save(data, "PNG", optimize=True)
        return _data_uri("image/png", data.getvalue())
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    image.save(data, "JPEG", quality=82)
    return _data_uri("image/jpeg", data.getvalue())


def figure_uri(file: Path) -> str | None:
    """Give a PNG file as the text of an `img`'s `src`; None if it is too large for a page, or no PNG."""
    data = file.read_bytes()
    is_png = data.startswith(b"\x89PNG")
    return _data_uri("image/png", data) if is_png and len(data) <= _MAX_FIGURE_BYTES else None


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
