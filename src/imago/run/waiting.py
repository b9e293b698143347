"""What to change where a run spends its time waiting for data."""

from dataclasses import fields

from imago.data.augment_settings import Augment

MAX_SHARE = 0.1  # of the training time: above it a run is told what to change

# Augmentations that cost most: those of one picture at a time, then those that touch every pixel of a batch.
_COSTLY = ("policy", "rotation_degrees", "blur_probability", "gray_probability")
_COLOURS = ("hue", "saturation", "contrast", "brightness")


def advise_on_waiting(
    share: float, cache: str | None, augment: Augment, num_workers: int, num_cores: int
) -> str | None:
    """Name the settings that would shorten the waiting, the most helpful first.

    Args:
        share: of the training time spent waiting for data, in [0, 1].
        cache: `data.cache` where every epoch decodes its pictures all the same, None where none does.
        augment: the settings of the training pictures.
        num_workers: processes that prepared its batches.
        num_cores: that this training process may use.

    Returns:
        None where the share is small.
    """
    if share <= MAX_SHARE:
        return None
    changes = []
    if cache is not None:
        # What "auto" did not keep is too large as it is, or was needed only once.
        changes.append("data.cache=auto" if cache == "none" else "data.decoded_px=256 data.cache=disk")
    if num_workers < num_cores and (num_workers or cache is not None or augment.is_per_picture):
        changes.append(f"data.num_workers={num_cores}")
    changes += _lighter(augment, _COSTLY) or _lighter(augment, _COLOURS)
    return " or ".join(changes) or "a larger data.batch_size"


def _lighter(augment: Augment, names: tuple[str, ...]) -> list[str]:
    """Turn off those of the settings that are on, in one piece to type."""
    off = {field.name: field.default for field in fields(augment) if field.name in names}
    typed = [f"augment.{name}={'null' if off[name] is None else off[name]}" for name in names if getattr(augment, name)]
    return [" ".join(typed)] if typed else []
