"""Format text and numbers: escape control characters, pad by display width, shorten long lists, add units."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

_MAX_WIDTH = 300  # of a name among others; our own choice
WORDNET_ID = re.compile(r"n\d{8}")  # of a class of ImageNet; its classes are in their order


def printable(text: Path | str) -> str:
    """Escape control characters and invalid UTF-8, so that a file name or class name cannot control the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def printable_lines(text: str) -> str:
    """Escape the control characters of each line."""
    return "\n".join(map(printable, text.split("\n")))


def display_width(text: str) -> int:
    """Return the number of terminal columns; wide East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def padded(text: str, width: int, align_right: bool = False) -> str:
    """Pad with spaces, on the right or on the left, to `width` columns of the terminal; see `display_width`."""
    gap = " " * (width - display_width(text))
    return gap + text if align_right else text + gap


def shortened(text: str, width: int) -> str:
    """Return `text` if it fits in `width` columns of the terminal, else its beginning and three dots."""
    if display_width(text) <= width:
        return text
    text = text[:width]
    while display_width(text) > width - 3:
        text = text[:-1]
    return f"{text}..."


def join_names(names: Iterable[str], limit: int = 10) -> str:
    """Join at most `limit` names, escaped, and append how many more there are."""
    # 10 names are about one line of the terminal; our own choice.
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(shortened(printable(name), _MAX_WIDTH) for name in names[:limit]) + more


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank; without a message, the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def duration_text(seconds: float | None) -> str:
    """Format a duration, e.g. 26 s, 12 min 5 s or 3 h 20 min; empty if it is None."""
    if seconds is None:
        return ""
    if seconds < 59.5:  # from 59.5 on it would be rounded to "60 s"
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def percent_text(share: float | None) -> str:
    """Format a share in [0, 1] as percent; empty if it is None."""
    return "" if share is None else f"{100 * share:.2f} %"


def range_text(low: float | None, high: float | None, separator: str = " to ") -> str:
    """Format two shares in percent, without the sign; empty if one of them is None."""
    return "" if low is None or high is None else f"{100 * low:.2f}{separator}{100 * high:.2f}"


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return a count with the words that agree with it: 1 epoch, 1,000 epochs; `plural` has an s by default."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def metric_text(value: float | None) -> str:
    """Format a metric with 4 decimals, or 4 digits if it is very small or large; empty if it is None."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def count_text(count: float | None) -> str:
    """Format a count or speed with thousands separators; empty if it is None."""
    return "" if count is None else f"{count:,.0f}"


def table_lines(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Format rows of cells in columns for the terminal, with a rule below the first; `right`: columns of numbers."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(padded(row[column], width, column in right) for column, width in enumerate(widths)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows of cells as a table in Markdown; the first row is the header."""
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return [lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]]
