"""Texts for people: whatever a name holds, it stays on its line."""

import pytest

from imago.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é 数.png", "plain é 数.png"), ("a\n\tb", r"a\n\tb"), ("\x1b[31m", r"\x1b[31m"), ("\udcff", r"\udcff")],
)
def test_signs_without_a_letter_are_escaped_and_all_others_stay(text: str, shown: str):
    assert printable(text) == shown
