"""Text for a terminal: control characters escaped, padded by display width, long lists cut."""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path


def printable(text: Path | str) -> str:
    """Escape control characters and invalid UTF-8, so that a file name or class name cannot control the terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))


def display_width(text: str) -> int:
    """Return the number of terminal columns; wide East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def padded(text: str, width: int, align_right: bool = False) -> str:
    """Pad a text with spaces to a display width."""
    gap = " " * (width - display_width(text))
    return gap + text if align_right else text + gap


def join_names(names: Sequence[str] | Iterable[str], limit: int = 10, separator: str = ", ") -> str:
    """Join names; of more than `limit`, the first ones and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return separator.join(map(printable, names[:limit])) + more
