"""The room that sees configs: what the commands do, from the composed settings to the run folder.

From a notebook:

    from imago.run import load_model
    model = load_model("logs/latest")
    logits = model(images)          # uint8 (N, 3, size, size) -> (N, K); names in model.class_names
    model.probabilities(images)     # calibrated
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imago.model.classifier import Classifier

__all__ = ["load_model"]


def load_model(path: str | Path, extra_targets: Sequence[str] = ()) -> "Classifier":
    """Load a trained network, ready to use.

    Args:
        path: a run folder (its best checkpoint is taken) or a checkpoint file.
        extra_targets: packages of your own that the checkpoint's network may come from, e.g. `["mynet.*"]`.

    Returns:
        A module in eval mode on the CPU that takes uint8 pictures (N, 3, size, size) and gives logits (N, K); it
        carries `class_names`, `preprocess` and `calibration_temperature`. A warning says so where none was fitted.

    Raises:
        DataError: if there is no sound checkpoint of this project at `path`.
        ConfigError: if the checkpoint names a target that is not allowed.
    """
    from imago.run.load import load_calibrated  # torch is loaded only by those who want a model

    return load_calibrated(Path(path), extra_targets)
