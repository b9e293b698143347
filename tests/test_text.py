"""Text is padded by its display width, and control characters in names are escaped."""

import pytest

from imago.text import counted, display_width, join_names, metric_text, padded, printable, shortened


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


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (1, ("epoch",), "1 epoch"),
        (0, ("epoch",), "0 epochs"),
        (1, ("class has", "classes have"), "1 class has"),
        (1200, ("class has", "classes have"), "1,200 classes have"),
    ],
)
def test_words_agree_with_their_count(count: int, words: tuple[str, ...], text: str):
    assert counted(count, *words) == text


@pytest.mark.parametrize(
    ("text", "short"),
    [("abcde", "abcde"), ("abcdef", "ab..."), ("数据集", "数..."), ("数a", "数a"), ("a" * 10**6, "aa...")],
)
def test_long_text_is_cut_to_its_width(text: str, short: str):
    assert shortened(text, 5) == short


def test_long_lists_of_names_are_cut():
    assert len(join_names(["x" * 20_000] * 3)) < 1000
    assert join_names(["a", "b\n"]) == r"a, b\n"
    assert join_names([f"c{number}" for number in range(2002)], limit=2) == "c0, c1 and 2,000 more"
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
