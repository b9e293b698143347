"""What to change where a run spends its time waiting for data."""

from dataclasses import fields

from imago.augment.settings import Augment

_DECODED_PX = 256  # leaves room for random crops to 224 px, what most networks are trained at
MAX_SHARE = 0.1  # of the training time: above it a run is told what to change

# Augmentations that cost most: those of one image at a time, then those that touch every pixel of a batch.
_COSTLY = ("policy", "rotation_degrees", "blur_probability", "gray_probability")
_COLOURS = ("hue", "saturation", "contrast", "brightness")


def data_wait_advice_for(
    share: float, cache: str | None, augment: Augment, num_workers: int, num_cores: int
) -> str | None:
    """Name the settings that would shorten the waiting, the most helpful first.

    Args:
        share: of the training time spent waiting for data, in [0, 1].
        cache: `data.cache` where every epoch decodes its images all the same, None where none does.
        augment: the settings of the training images.
        num_workers: processes that prepared its batches.
        num_cores: that this training process has to spare for data; 0 where the network computes on them.

    Returns:
        None where the share is small.
    """
    if share <= MAX_SHARE:
        return None
    changes = []
    if cache is not None:
        if cache == "none":
            changes.append("data.cache=auto")
        elif augment.random_resized_crop_scale is not None:  # what "auto" did not keep is too large as it is
            changes.append(f"data.decoded_px={_DECODED_PX} data.cache=auto")
    if num_workers < num_cores:
        changes.append(f"data.num_workers={num_cores}")
    lighter = _lighter(augment, _COSTLY) or _lighter(augment, _COLOURS)
    changes += [f"{part} (which trains otherwise)" for part in lighter]
    return " or ".join(changes) or "a lower preprocess.size (which trains otherwise)"


def _lighter(augment: Augment, names: tuple[str, ...]) -> list[str]:
    """Turn off those of the settings that are on, in one piece to type."""
    off = {field.name: field.default for field in fields(augment) if field.name in names}
    typed = [f"augment.{name}={'null' if off[name] is None else off[name]}" for name in names if getattr(augment, name)]
    return [" ".join(typed)] if typed else []
