"""Run a trained network over the images of a split, for evaluation and calibration."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imago.errors import DataError
from imago.inference.load import Predictor, load_predictor
from imago.statistics.metrics import Result
from imago.text import join_names

if TYPE_CHECKING:
    from torch import Tensor

    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples

SPLITS = ("test", "val", "all")  # all: of a data set that was not trained on


def split_samples(data: "ImageDataModule", split: str) -> "Samples":
    """Return the samples of a split, one of SPLITS; for "all", those of train, val and test in this order."""
    from imago.data.dataset import concatenate

    parts = dict(data.splits.named())
    return concatenate(list(parts.values())) if split == "all" else parts[split]


def image_names(samples: "Samples") -> list[str]:
    """Return the names of images: paths of files, or the names of images in memory."""
    return [str(name) for name in getattr(samples, "paths", samples.names)]


def images_in_memory(samples: "Samples", rows: Sequence[int]) -> dict[int, np.ndarray]:
    """Return some images by their row, uint8 (H, W, 3); an empty dict if the images are files."""
    from imago.data.dataset import LabeledArray

    return {row: samples.images[row].transpose(1, 2, 0) for row in rows} if isinstance(samples, LabeledArray) else {}


def match_classes(names: Sequence[str], network_names: Sequence[str]) -> np.ndarray:
    """Return for each class of a data set its index among the classes of the network, int64.

    Raises:
        DataError: if the network lacks one; it cannot be right about the images of that class.
    """
    indices = {unicodedata.normalize("NFC", name): index for index, name in enumerate(network_names)}
    missing = [name for name in names if unicodedata.normalize("NFC", name) not in indices]
    if missing:
        raise DataError(
            f"the data set has classes that the network lacks: {join_names(map(repr, missing))}; the network has "
            f"{join_names(map(repr, network_names))}. Rename or remove their folders."
        )
    return np.array([indices[unicodedata.normalize("NFC", name)] for name in names], np.int64)


def run_split(predictor: Predictor, data: "ImageDataModule", split: str, class_indices: np.ndarray) -> Result:
    """Map every image of a split to logits.

    Args:
        predictor: the network.
        data: set up, with the network's preprocess.
        split: one of SPLITS.
        class_indices: as returned by `match_classes`.

    Raises:
        DataError: if outputs are not finite, or an image was lost or read twice.
    """
    labels, logits, confidence = [], [], []
    for images, batch_labels in _batches(data, split):
        batch_logits, probabilities = predictor.predict(images.numpy())
        logits.append(batch_logits)
        confidence.append(probabilities.max(axis=1))
        labels.append(class_indices[batch_labels.numpy()])
    result = Result(
        predictor.class_names,
        np.concatenate(labels),
        np.concatenate(logits),
        np.concatenate(confidence),
        predictor.calibration_temperature,
    )
    expected = class_indices[split_samples(data, split).labels]
    if not np.array_equal(result.labels, expected):
        raise DataError(
            f"{len(result.labels):,} of {len(expected):,} images of {split} were read, or in another order: the data "
            "set changed while it was read; try again."
        )
    if not np.isfinite(result.logits).all():
        raise DataError("the network's outputs contain NaN or infinity; use another checkpoint.")
    return result


def validate(
    checkpoint: Path, data: "ImageDataModule", extra_targets: Sequence[str], accelerator: str, tta: str = "none"
) -> Result:
    """Map the validation images to a checkpoint's logits, in fp32 and uncalibrated.

    Args:
        checkpoint: the file.
        data: set up; its preprocess is set to that of the checkpoint.
        extra_targets: packages that the network may come from.
        accelerator: auto, cpu or gpu.
        tta: views of each image to average, see `imago.task.tta`.
    """
    predictor = load_predictor(checkpoint, extra_targets, accelerator, tta, is_calibrated=False)
    data.preprocess = predictor.preprocess
    return run_split(predictor, data, "val", match_classes(data.class_names, predictor.class_names))


def _batches(data: "ImageDataModule", split: str) -> Iterator[tuple["Tensor", "Tensor"]]:
    from tqdm import tqdm

    loaders = [data.evaluation_loader(name) for name, _ in data.splits.named() if split in (name, "all")]
    total = sum(map(len, loaders))
    yield from tqdm(chain(*loaders), desc=split, total=total, unit="batch", leave=False, disable=None)
