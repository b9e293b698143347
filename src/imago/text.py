"""Format text for a terminal: escape control characters, pad by display width, shorten long lists."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path


def printable(text: Path | str) -> str:
    """Escape control characters and invalid UTF-8, so that a file name or class name cannot control the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def display_width(text: str) -> int:
    """Return the number of terminal columns; wide East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def padded(text: str, width: int, align_right: bool = False) -> str:
    """Pad a text with spaces to a display width."""
    gap = " " * (width - display_width(text))
    return gap + text if align_right else text + gap


def join_names(names: Iterable[str], limit: int = 10, separator: str = ", ") -> str:
    """Join at most `limit` names, escaped, and append how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return separator.join(map(printable, names[:limit])) + more
