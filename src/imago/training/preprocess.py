"""The one decision on how images are prepared: what the user typed, else the weights' own, else the data set's."""

from collections.abc import Mapping
from typing import Any

from imago.images import SMALL_PX, Preprocess

_SHAPE, _STATISTICS = ("size", "resize", "crop", "interpolation"), ("mean", "std")


def decide_preprocess(
    typed: Mapping[str, Any], weights: Mapping[str, Any] | None, data: Preprocess
) -> tuple[Preprocess, str]:
    """Take each key from the first that has a say in it.

    Args:
        typed: the `preprocess` settings; None where the user typed nothing. A typed `size` alone scales `resize` along.
        weights: what the pretrained weights ask for, if there are any. Their size does not count where it is over 64 px
            and the images are not; their mean and std always do: the kept layers expect them.
        data: the data set's own record.

    Returns:
        The record and a few words on its origin for the start table.
    """
    chosen = {name: value for name, value in typed.items() if value is not None}
    origins = [f"{' '.join(chosen)} as typed"] if chosen else []
    base = data.to_dict()
    if weights:
        kept = _STATISTICS if data.size <= SMALL_PX < weights["size"] else (*_SHAPE, *_STATISTICS)
        base |= {name: weights[name] for name in kept if name in weights}
        if set(kept) - chosen.keys():
            origins.append(f"{'mean and std' if kept is _STATISTICS else 'all'} from the pretrained weights")
    if "size" in chosen and "resize" not in chosen:
        chosen["resize"] = round(base["resize"] * chosen["size"] / base["size"])
    if not weights or data.size <= SMALL_PX < weights["size"]:
        origins.append("the rest from the data set" if origins else "from the data set")
    return Preprocess.from_dict(base | chosen), ", ".join(origins)
