"""Fonts for class names in any script: matplotlib's own has no Chinese, Japanese, Korean or Hindi letters, for one."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lend_fonts(figure: "Figure") -> None:
    """Let the texts of a figure take signs that their font lacks from an installed font; else a box stands for them."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    own = get_font(findfont(FontProperties()))
    signs = {sign for text in texts for sign in text.get_text() if sign.isprintable()}
    missing = frozenset(sign for sign in signs if not own.get_char_index(ord(sign)))
    families = [*rcParams["font.family"], *_families_with(missing)]
    for text in texts if missing else []:
        text.set_fontfamily(families)


@cache
def _families_with(missing: frozenset[str]) -> tuple[str, ...]:
    """Give the fewest installed fonts, plain ones first, that have the signs; matplotlib knows them from then on."""
    from matplotlib import font_manager

    families, left = [], set(missing)
    for file in sorted(font_manager.findSystemFonts(), key=_plainest_first):
        if not left:
            break
        try:
            font = font_manager.get_font(file)
        except (OSError, RuntimeError):  # FreeType cannot read it
            continue
        found = {sign for sign in left if font.get_char_index(ord(sign))}
        if found and font.scalable:
            font_manager.fontManager.addfont(file)
            families.append(font_manager.FontProperties(fname=file).get_name())
            left -= found
    return tuple(families)


def _plainest_first(file: str) -> tuple[bool, bool, str]:
    name = Path(file).stem
    return "Sans" not in name, "Regular" not in name, file
