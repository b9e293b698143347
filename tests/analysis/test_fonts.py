"""Class names in scripts that matplotlib's own font lacks are drawn with an installed font that has them."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import font_manager

from imago.analysis import fonts
from imago.analysis.plots import draw_confusion

FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fonts of the system, to be filled; nothing of it is kept for other tests."""
    files: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    fonts._families_with.cache_clear()
    yield files
    fonts._families_with.cache_clear()


def sign_of(has: str, lacks: str) -> str:
    """A letter that one of matplotlib's fonts has and the other lacks."""
    theirs, ours = (font_manager.get_font(str(FONTS / f"{name}.ttf")) for name in (has, lacks))
    return next(chr(code) for code in theirs.get_charmap() if chr(code).isalpha() and not ours.get_char_index(code))


def families(name: str) -> set[tuple[str, ...]]:
    figure = draw_confusion(np.eye(2, dtype=int), [name, "plain"], "title")
    return {tuple(label.get_fontfamily()) for label in figure.axes[0].get_yticklabels()}


def test_a_sign_that_the_font_lacks_comes_from_an_installed_one(installed: list[str], tmp_path: Path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed += [str(tmp_path / "broken.ttf"), str(FONTS / "cmr10.ttf"), str(FONTS / "STIXGeneral.ttf")]
    sign = sign_of("STIXGeneral", "DejaVuSans")
    assert families(sign) == {("sans-serif", "STIXGeneral")}


def test_where_nothing_is_missing_or_nothing_has_it_the_font_stays(installed: list[str]):
    assert families("Ωμέγα") == {("sans-serif",)}
    assert families("\U000f1234蜂") == {("sans-serif",)}
