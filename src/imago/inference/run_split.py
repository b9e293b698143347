"""Every image of a split through a trained network: what evaluation and calibration start from."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imago.errors import DataError
from imago.inference.load import Predictor, TorchPredictor, find_device, load_classifier
from imago.statistics.metrics import Result

if TYPE_CHECKING:
    from torch import Tensor

    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples

SPLITS = ("test", "val", "all")  # all: of a data set that was not trained on


def split_images(data: "ImageDataModule", split: str) -> list[tuple[str, "Samples"]]:
    """Give the parts of the data set that the setting `split` means, by name."""
    return [(name, part) for name, part in data.splits.named() if split in (name, "all")]


def match_classes(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Give for each class of a data set its place among the classes of the network, int64.

    Raises:
        DataError: if the network does not know one; it cannot be right about its images.
    """
    places = {unicodedata.normalize("NFC", name): place for place, name in enumerate(known)}
    missing = [name for name in names if unicodedata.normalize("NFC", name) not in places]
    if missing:
        raise DataError(
            f"the data set has classes that the network does not know: {_listed(missing)}; it knows {_listed(known)}. "
            "Rename or remove their folders."
        )
    return np.array([places[unicodedata.normalize("NFC", name)] for name in names], np.int64)


def run_split(predictor: Predictor, data: "ImageDataModule", split: str, places: np.ndarray) -> Result:
    """Map every image of a split to logits.

    Args:
        predictor: the network.
        data: set up, with the network's preprocess.
        split: one of SPLITS.
        places: of `match_classes`.

    Raises:
        DataError: if the network's numbers are not finite, or an image was lost or seen twice.
    """
    labels, logits, confidence = [], [], []
    for images, batch_labels in _batches(data, split):
        batch_logits, probabilities = predictor.predict(images.numpy())
        logits.append(batch_logits)
        confidence.append(probabilities.max(axis=1))
        labels.append(places[batch_labels.numpy()])
    result = Result(
        predictor.class_names,
        np.concatenate(labels),
        np.concatenate(logits),
        np.concatenate(confidence),
        predictor.calibration_temperature,
    )
    expected = np.concatenate([places[part.labels] for _, part in split_images(data, split)])
    if not np.array_equal(result.labels, expected):
        raise DataError(
            f"{len(result.labels):,} of {len(expected):,} images of {split} were seen, or in another order: the data "
            "set has changed while it was read; try again."
        )
    if not np.isfinite(result.logits).all():
        raise DataError("the network gives numbers that are not finite; its weights are of no use.")
    return result


def validate(
    checkpoint: Path, data: "ImageDataModule", extra_targets: Sequence[str], accelerator: str, tta: str = "none"
) -> Result:
    """Map the validation images to the logits that a checkpoint gives in fp32, uncalibrated.

    Args:
        checkpoint: the file.
        data: set up; it gets the preprocess of the checkpoint.
        extra_targets: packages that the network may come from.
        accelerator: auto, cpu or gpu.
        tta: views of each image to take the mean of, see `imago.task.tta`.
    """
    predictor = TorchPredictor(load_classifier(checkpoint, extra_targets), find_device(accelerator), tta)
    data.preprocess = predictor.preprocess
    return run_split(predictor, data, "val", match_classes(data.class_names, predictor.class_names))


def _batches(data: "ImageDataModule", split: str) -> Iterator[tuple["Tensor", "Tensor"]]:
    from tqdm import tqdm

    loaders = [data.evaluation_loader(name) for name, _ in split_images(data, split)]
    total = sum(map(len, loaders))
    yield from tqdm(chain(*loaders), desc=split, total=total, unit="batch", leave=False, disable=None)


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
