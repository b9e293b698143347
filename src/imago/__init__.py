"""imago: train, evaluate and export image classifiers with PyTorch Lightning and Hydra.

    from imago import load_model
    model = load_model("logs/latest")
    images = model.read("photo.jpg", "other.jpg")  # uint8 (N, 3, size, size); arrays and tensors of your own work too
    logits = model(images)                         # (N, K); names in model.class_names
    model.probabilities(images)                    # calibrated on val

Importing this package loads neither torch nor Lightning; `load_model` does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imago.model.classifier import Classifier

__version__ = "0.2.0"
__all__ = ["load_model"]


def load_model(path: str | Path, trust: Sequence[str] = ()) -> "Classifier":
    """Load a trained network for inference.

    Args:
        path: a run directory (its best checkpoint is loaded) or a checkpoint file.
        trust: packages outside this project that the checkpoint's network may come from, e.g. `["mynet"]`.

    Returns:
        A module in eval mode on the CPU that maps uint8 images (N, 3, size, size), a tensor or an array, to logits
        (N, K), with the attributes `class_names`, `preprocess` and `calibration_temperature`. Its parameters require no
        gradient; other images are a ValueError. Logs a warning if no temperature was fitted.

    Raises:
        DataError: if there is no intact checkpoint of this project at `path`.
        ConfigError: if the checkpoint names a class that is not trusted.
    """
    from imago.inference.load import load_calibrated

    return load_calibrated(Path(path), trust)
