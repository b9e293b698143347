"""Convert a duration given in epochs or in optimizer steps (without torch: settings are checked before it loads)."""

import re
from typing import Any

from imago.errors import ConfigError

_TIME_UNITS = {"days", "hours", "minutes", "seconds"}


def duration_in_steps(name: str, epochs: float | None, steps: int | None, steps_per_epoch: int) -> int:
    """Convert a duration in epochs, which may be a fraction, or in optimizer steps to the nearest optimizer step.

    `name` is that of the two settings without `_epochs` and `_steps`, e.g. "warmup"; one of the two is None.

    Raises:
        ConfigError: if both or neither are set, or the value is negative.
    """
    durations = {f"schedule.{name}_epochs": epochs, f"schedule.{name}_steps": steps}
    if (epochs is None) == (steps is None):
        typed = " ".join(f"{key}={'null' if value is None else value}" for key, value in durations.items())
        raise ConfigError(f"{typed}: set one of the two and the other to null.")
    for key, value in durations.items():
        if value is not None and value < 0:
            raise ConfigError(f"{key}={value} must be 0 or more.")
    return steps if steps is not None else round((epochs or 0) * steps_per_epoch)


def is_time_limit(value: Any) -> bool:
    """Return whether a value is a time as the Trainer's `max_time` takes it: DD:HH:MM:SS, or numbers by their unit."""
    if isinstance(value, str):
        return re.fullmatch(r"\d+:\d\d?:\d\d?:\d\d?", value) is not None
    return {*value} <= _TIME_UNITS and all(isinstance(value[unit], int | float) and value[unit] >= 0 for unit in value)


def is_whole_epoch(limit: int | float) -> bool:
    """Return whether `trainer.limit_*_batches` leaves nothing out: 1.0 is all, the int 1 is one batch."""
    return isinstance(limit, float) and limit == 1.0
