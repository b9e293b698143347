"""Read the metrics in a `summary.json`."""

import sys
from collections.abc import Mapping
from typing import Any

_COUNTS = ("num_images", "num_left_out")


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of validation and test that are finite numbers, by their logged names, such as `val/f1`.

    Those of validation are of the best epoch; another task may lack any of them.
    """
    return {
        f"{split}/{name}": value
        for split in ("val", "test")
        for name, value in (summary.get(split) or {}).items()
        if name not in _COUNTS and is_finite(value)
    }


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
