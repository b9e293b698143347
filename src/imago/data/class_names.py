"""Names of classes: which ones nobody can tell apart, and which one a wrong name may mean."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

from imago.errors import DataError


def plain_name(name: str) -> str:
    """Give what a reader sees of a name: composed accents, no capitals, no blanks around it."""
    return unicodedata.normalize("NFC", name.casefold()).strip()


def refuse_unclear_names(names: Iterable[str], what: str) -> None:
    """Check names that are to be classes.

    Args:
        names: each once.
        what: begins the text of an error, as in "DIR: the class folders".

    Raises:
        DataError: if two names look the same, or one is not UTF-8.
    """
    seen: dict[str, str] = {}
    for name in names:
        # Python stands in with these code points for bytes that it cannot read.
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"{what}: {ascii(name)} is not UTF-8; rename it.")
        other = seen.setdefault(plain_name(name), name)
        if other != name:
            raise DataError(f"{what} {ascii(other)} and {ascii(name)} look the same; merge or rename them.")


def nearest_class(name: str, class_names: Sequence[str]) -> str:
    """Say which class a wrong name may mean, or which ones there are."""
    close = difflib.get_close_matches(name, class_names, n=1)
    return f"is it {close[0]!r}?" if close else f"the classes are {', '.join(class_names[:10])}."
