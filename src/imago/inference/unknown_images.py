"""Run a network on images of none of its classes, for `eval.py ood=DATA`, and measure how well it tells them apart."""

import re
from collections.abc import Sequence
from hashlib import sha256
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imago.errors import ConfigError, DataError
from imago.inference.load import Predictor
from imago.inference.predict import predict_images
from imago.inference.predictions import write_predictions
from imago.inference.results import MAX_NAME_CHARS
from imago.statistics.metrics import LabeledOutputs
from imago.statistics.unknown_images import UNKNOWN_IMAGES_KEY, measure_unknown, missing_detector_note
from imago.text import counted, printable

if TYPE_CHECKING:
    from imago.data.dataset import Splits

_BATCH_SIZE = 64  # as in predict.py


def ood_name(text: str) -> str:
    """Return the part of a directory name for the setting ood=`text`: its last part, and a hash of its path."""
    path = Path(realpath(text))
    name = re.sub(r"[^\w.-]+", "_", path.name)[:MAX_NAME_CHARS]
    return f"ood_{name}-{sha256(bytes(path)).hexdigest()[:8]}"


def check_unknown(predictor: Predictor, text: str | None, images: Sequence[Path], splits: "Splits") -> None:
    """Check what the setting ood=`text` needs, before the network runs on the images of the dataset; nothing for None.

    Raises:
        ConfigError: if the network has no detector, or some of the images belong to `splits`, so they are not unknown.
    """
    if not text:
        return
    if predictor.unknown_detector is None:
        raise ConfigError(f"ood={printable(text)}: {missing_detector_note(None)}.")
    paths = (path for _, samples in splits.items() for path in getattr(samples, "paths", ()))
    if num_known := len({*map(realpath, images)} & {*map(realpath, paths)}):
        found = f"ood={printable(text)} has {counted(num_known, 'image')} of the evaluated dataset"
        raise ConfigError(f"{found}, whose classes are known; type images of other classes.")


def evaluate_unknown(
    predictor: Predictor, text: str, images: Sequence[Path], result: LabeledOutputs, directory: Path
) -> dict[str, Any]:
    """Return {UNKNOWN_IMAGES_KEY: how well a network tells `images` from those of `result`}, after `check_unknown`.

    The setting ood=`text` selects them; those that cannot be read are printed on stderr. Predictions and figure are
    written to `unknown_images.*` in `directory`.

    Raises:
        DataError: if none can be read, outputs are not finite, or a file cannot be written.
    """
    from imago.analysis.plots import plot_scores, save_figure

    detector: Any = predictor.unknown_detector
    predictions, bad_images = predict_images(predictor, images, _BATCH_SIZE, top_k=1)
    if not predictions:
        raise DataError(f"ood={printable(text)}: none of {counted(len(images), 'image')} can be read.")
    write_predictions(directory / "unknown_images.csv", predictions, bad_images, {"data": text})
    known, unknown = detector.scores(result.logits), np.array([prediction.score for prediction in predictions])
    title = f"{len(known):,} known images, {counted(len(unknown), 'image')} of {printable(Path(realpath(text)).name)}"
    save_figure(plot_scores(known, unknown, title), directory / "unknown_images.png")
    measured = measure_unknown(known, unknown, result.groups)
    return {UNKNOWN_IMAGES_KEY: {"data": text, "num_unreadable": len(bad_images), **measured}}
