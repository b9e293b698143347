"""Run a network on images of none of its classes, for `eval.py ood=DATA`, and measure how well it tells them apart."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imago.errors import ConfigError, DataError
from imago.files import report_unwritable, write_csv
from imago.inference.find_images import left_out_files
from imago.inference.load import Predictor
from imago.inference.predict import read_batches
from imago.inference.results import MAX_NAME_CHARS
from imago.inference.run_split import check_finite
from imago.statistics.metrics import LabeledOutputs
from imago.statistics.unknown_images import UNKNOWN_IMAGES_KEY, known_score, measure_unknown
from imago.text import counted, printable

if TYPE_CHECKING:
    from imago.data.dataset import Splits

_BATCH_SIZE = 64  # as in predict.py
_NUM_DIGITS = 8  # of a hash in the name of a directory; our own choice


def ood_name(text: str) -> str:
    """Return the part of a directory name for the setting ood=`text`, with a hash of its path."""
    path = realpath(text)
    name = re.sub(r"[^\w.-]+", "_", Path(path).name)[:MAX_NAME_CHARS]
    return f"ood_{name}-{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:_NUM_DIGITS]}"


def evaluate_unknown(
    predictor: Predictor, text: str, images: Sequence[Path], splits: "Splits", result: LabeledOutputs, directory: Path
) -> dict[str, Any]:
    """Measure how well a network tells the images that ood=`text` selects from those of `result`.

    Those that cannot be read are printed on stderr. `unknown_images.csv` and `.png` are written to `directory`.

    Args:
        predictor: the network.
        text: the setting.
        images: the files.
        splits: of the dataset that `result` is a part of.
        result: outputs for images of the classes of the network.
        directory: of the results.

    Returns:
        {UNKNOWN_IMAGES_KEY: the numbers}.

    Raises:
        ConfigError: if some of the images belong to `splits`, so they are not unknown.
        DataError: if none can be read, outputs are not finite, or the files cannot be written.
    """
    from imago.analysis.plots import plot_scores, save_figure

    paths = (path for _, samples in splits.items() for path in getattr(samples, "paths", ()))
    if num_known := len({*map(realpath, images)} & {*map(realpath, paths)}):
        raise ConfigError(
            f"ood={printable(text)} has {counted(num_known, 'image')} of the evaluated dataset, which are known; "
            "type images of other classes."
        )
    files, logits, num_unreadable = _run_images(predictor, images)
    if not files:
        raise DataError(f"ood={printable(text)}: none of {counted(len(images), 'image')} can be read.")
    check_finite(logits)
    known, unknown, cutoff = known_score(result.logits), known_score(logits), predictor.known_cutoff
    columns: dict[str, Iterable] = {"image": files, "score": (f"{score:.6f}" for score in unknown)}
    columns |= {"predicted": (predictor.class_names[index] for index in logits.argmax(axis=1))}
    columns |= {"unlike_training": (str(mark).lower() for mark in cutoff.marks(logits))} if cutoff else {}
    title = f"{len(known):,} known images, {counted(len(unknown), 'image')} of {printable(text)}"
    with report_unwritable(directory, "; choose another directory with output=DIR"):
        write_csv(directory / "unknown_images.csv", [[*columns], *zip(*columns.values(), strict=True)])
        figure = plot_scores(known, unknown, cutoff.score if cutoff else None, title)
        save_figure(figure, directory / "unknown_images.png")
    counts = {"num_unreadable": num_unreadable, "num_left_out": len(left_out_files(text, images))}
    return {UNKNOWN_IMAGES_KEY: {"data": text, **counts, **measure_unknown(known, unknown, result.groups, cutoff)}}


def _run_images(predictor: Predictor, images: Sequence[Path]) -> tuple[list[Path], np.ndarray, int]:
    """Return the images that can be read, N of them, the logits float32 (N, K), and the number of the others."""
    files: list[Path] = []
    logits: list[np.ndarray] = [np.empty((0, len(predictor.class_names)), np.float32)]
    bad_images: list[tuple[Path, str]] = []
    for names, pixels in read_batches(predictor.preprocess, images, _BATCH_SIZE, bad_images):
        files += names
        logits.append(predictor.predict(pixels)[0])
    return files, np.concatenate(logits), len(bad_images)
