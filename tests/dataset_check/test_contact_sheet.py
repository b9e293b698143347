"""A page of images: each in its place, and a line of text that any class name fits in."""

import numpy as np
import pytest

from imago.dataset_check.contact_sheet import draw_sheet, sheet_name

STRIP, CELL, GAP = 30, 96, 2


def plain(level: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


@pytest.mark.parametrize("size", [32, 40, 96, 224])
def test_images_stand_in_rows_of_eight_in_their_order(size: int):
    page = draw_sheet([plain(10 * place, size) for place in range(10)], "ten")
    step = (96 // size * size if size <= 96 else 96) + GAP
    assert page.shape == (STRIP + 2 * step, 8 * step + GAP, 3)
    for place in range(10):
        top, left = STRIP + place // 8 * step, GAP + place % 8 * step
        assert (page[top : top + step - GAP, left : left + step - GAP] == 10 * place).all()
    assert (page[STRIP + step :, 2 * step + GAP :] == 255).all()


def test_small_images_are_enlarged_without_blurring():
    checks = np.array([[0, 255], [255, 0]], np.uint8)[..., None].repeat(3, axis=2)
    page = draw_sheet([checks], "checks")
    assert (
        page[STRIP : STRIP + CELL, GAP : GAP + CELL, 0].tolist()
        == np.kron([[0, 255], [255, 0]], np.ones((48, 48))).tolist()
    )


@pytest.mark.parametrize("text", ["ants", "猫: 3", "line\nbreak", "\udcff", "a" * 500, ""])
def test_any_caption_fits_the_strip(text: str):
    page = draw_sheet([plain(0)], text)
    assert page.shape[1] == 8 * (CELL + GAP) + GAP
    assert (page[:STRIP].max() > 200) == bool(text)


def test_signs_that_the_font_lacks_are_escaped_and_so_tell_classes_apart():
    one, other = (draw_sheet([plain(0)], text)[:STRIP] for text in ("\U000e0001", "\U000e0002"))  # tags: in no font
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("label", "name", "expected"),
    [
        (3, "ants", "0003_ants.png"),
        (0, "../etc/pass wd", "0000____etc_pass_wd.png"),
        (12, "猫", "0012_猫.png"),
        (1, "\udcff\n", "0001___.png"),
        (1, "x" * 300, f"0001_{'x' * 40}.png"),
    ],
)
def test_a_class_gets_a_file_name_that_every_system_takes(label: int, name: str, expected: str):
    assert sheet_name(label, name) == expected
