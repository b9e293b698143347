"""Many images on one page, with a line of text over them, so that a person can look."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_IMAGES = 64
_COLUMNS = 8
_GAP_PX = 2
_CELL_PX = 96  # about: small images are enlarged by a whole factor, large ones scaled down
_FONT_PX = 18
_STRIP_PX = 30
_MISSING = "\uffff"  # is no character (Unicode 16.0, section 23.7), so a font draws its sign for a missing one


def draw_sheet(squares: Sequence[np.ndarray], caption: str) -> np.ndarray:
    """Lay out images of one size, at least one.

    Args:
        squares: uint8 (S, S, 3) each.
        caption: one line; signs that the font lacks are escaped, and what does not fit is cut.

    Returns:
        uint8 (height, width, 3).
    """
    cells = [_fit(square) for square in squares]
    step = cells[0].shape[0] + _GAP_PX
    rows = math.ceil(len(cells) / _COLUMNS)
    page = np.full((_STRIP_PX + rows * step, _COLUMNS * step + _GAP_PX, 3), 255, np.uint8)
    page[:_STRIP_PX] = _draw_caption(caption, page.shape[1])
    for place, cell in enumerate(cells):
        top, left = _STRIP_PX + place // _COLUMNS * step, _GAP_PX + place % _COLUMNS * step
        page[top : top + len(cell), left : left + len(cell)] = cell
    return page


def sheet_name(label: int, class_name: str) -> str:
    """Name the file of a class: its label first, as names may differ in nothing but signs that files cannot have."""
    letters = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in class_name)
    return f"{label:04d}_{letters[:40]}.png"


def _fit(square: np.ndarray) -> np.ndarray:
    size = square.shape[0]
    if size <= _CELL_PX:
        factor = _CELL_PX // size
        return square.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.asarray(Image.fromarray(square).resize((_CELL_PX, _CELL_PX), Image.Resampling.BOX))


def _draw_caption(text: str, width: int) -> np.ndarray:
    font = _font()
    missing = bytes(font.getmask(_MISSING))
    drawable = "".join(sign if _can_draw(font, sign, missing) else _escaped(sign) for sign in text)
    strip = Image.new("RGB", (width, _STRIP_PX), (32, 32, 32))
    ImageDraw.Draw(strip).text((8, _STRIP_PX // 2), drawable, "white", font, anchor="lm")
    return np.asarray(strip)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", _FONT_PX)  # on most systems; Pillow's own has ASCII only
    except OSError:
        return ImageFont.load_default(_FONT_PX)


def _can_draw(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, sign: str, missing: bytes) -> bool:
    return sign.isprintable() and bytes(font.getmask(sign)) != missing


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode()
