"""Text is padded by its display width, and control characters in names are escaped."""

import pytest

from imago.text import display_width, join_names, metric_text, padded, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ünï 😀", "ünï 😀"), ("a\nb\x1b[2J", r"a\nb\x1b[2J"), ("caf\udce9", r"caf\udce9"), ("\u202e", r"\u202e")],
)
def test_control_characters_and_invalid_utf_8_are_escaped(text: str, expected: str):
    assert printable(text) == expected
    printable(text).encode()


@pytest.mark.parametrize(("text", "width"), [("", 0), ("ant", 3), ("猫猫", 4), ("cafe\u0301", 4)])
def test_texts_are_padded_by_their_display_width(text: str, width: int):
    assert display_width(text) == width
    assert padded(text, 6) == text + " " * (6 - width)
    assert padded(text, 6, align_right=True) == " " * (6 - width) + text
    assert padded(text, 0) == text


def test_long_lists_of_names_are_cut():
    assert join_names(["a", "b\n"]) == r"a, b\n"
    assert join_names([f"c{number}" for number in range(2002)], limit=2, separator=" ") == "c0 c1 and 2,000 more"
    assert join_names([]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.93124, "0.9312"),
        (1, "1.0000"),
        (0.0, "0.0000"),
        (-0.5, "-0.5000"),
        (2e-5, "2e-05"),
        (1e5, "1e+05"),
        (None, ""),
    ],
)
def test_a_metric_has_four_decimals_or_digits(value: float | None, text: str):
    assert metric_text(value) == text
