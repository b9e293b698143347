"""Text for a terminal: control characters and invalid UTF-8 are escaped."""

import pytest

from imago.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é 数.png", "plain é 数.png"), ("a\n\tb", r"a\n\tb"), ("\x1b[31m", r"\x1b[31m"), ("\udcff", r"\udcff")],
)
def test_characters_that_are_not_printable_are_escaped_and_others_are_unchanged(text: str, shown: str):
    assert printable(text) == shown
