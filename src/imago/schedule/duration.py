"""A length of time in training, given in epochs or in optimizer steps."""

from imago.errors import ConfigError


def duration_in_steps(name: str, epochs: float | None, steps: int | None, steps_per_epoch: int) -> int:
    """Give the length in optimizer steps.

    Args:
        name: of the two settings, without `_epochs` and `_steps`.
        epochs: may be a fraction; None where steps are given.
        steps: None where epochs are given.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        ConfigError: if both are given or none, or if it is negative.
    """
    given = {f"{name}_epochs": epochs, f"{name}_steps": steps}
    if (epochs is None) == (steps is None):
        typed = " ".join(f"schedule.{key}={'null' if value is None else value}" for key, value in given.items())
        raise ConfigError(f"{typed}: give one of the two and set the other to null.")
    for key, value in given.items():
        if value is not None and value < 0:
            raise ConfigError(f"schedule.{key}={value} must be 0 or more.")
    return steps if steps is not None else round((epochs or 0) * steps_per_epoch)
