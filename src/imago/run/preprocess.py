"""The one decision on how pictures are prepared: what the user typed, else the weights' own, else the data set's."""

from collections.abc import Mapping
from typing import Any

from imago.images import Preprocess


def decide_preprocess(typed: Mapping[str, Any], own: Preprocess) -> tuple[Preprocess, str]:
    """Merge the typed keys over the data set's record.

    Args:
        typed: the `preprocess` settings; None where the user typed nothing. A typed `size` alone scales `resize` along.
        own: of the data set.

    Returns:
        The record and a few words on its origin for the start table.
    """
    chosen = {name: value for name, value in typed.items() if value is not None}
    if "size" in chosen and "resize" not in chosen:
        chosen["resize"] = round(own.resize * chosen["size"] / own.size)
        note = ", ".join(name for name in chosen if name != "resize")
    else:
        note = ", ".join(chosen)
    record = Preprocess.from_dict(own.to_dict() | chosen)
    return record, f"{note} as typed, the rest from the data set" if note else "from the data set"
