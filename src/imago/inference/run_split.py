"""Run a trained network over the images of a split, for evaluation and calibration."""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from imago.errors import DataError
from imago.files import encode_names, sha256_of
from imago.inference.load import Predictor, load_predictor
from imago.statistics.metrics import LabeledOutputs
from imago.text import WORDNET_ID, join_names

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples, Splits
    from imago.model.classifier import Classifier

_SHOWN_PX = (128, 128)  # of images of any size that are not files; our own choice
_NUM_HASHED = 1_000  # images of a torch Dataset, which may be slow to read; our own choice
_NUM_SAMPLED = 300  # images of a split that a resumed run compares; our own choice, about a second for photos
EVALUATED_SPLITS = ("test", "val", "all")  # all: every image of a dataset that was not used for training


def split_samples(data: "ImageDataModule", split: str) -> "Samples":
    """Return the samples of a split, see `EVALUATED_SPLITS`; for "all", those of train, val and test in this order."""
    from imago.data.dataset import concatenate

    by_split = dict(data.splits.items())
    return concatenate(list(by_split.values())) if split == "all" else by_split[split]


def image_names(samples: "Samples") -> list[str]:
    """Return the names of images: paths of files, or the names of images in memory."""
    return [str(name) for name in getattr(samples, "paths", samples.names)]


def images_in_memory(samples: "Samples", indices: Sequence[int]) -> dict[int, np.ndarray]:
    """Return some images by their index, uint8 (H, W, 3), all of one size; an empty dict if the images are files."""
    from imago.data.dataset import LabeledArray, LabeledFiles

    if isinstance(samples, LabeledFiles):
        return {}
    images = {index: samples.read(index) for index in indices}
    if isinstance(samples, LabeledArray):
        return images
    return {index: np.asarray(Image.fromarray(pixels).resize(_SHOWN_PX)) for index, pixels in images.items()}


def images_digest(samples: "Samples", class_names: Sequence[str]) -> str:
    """Return a SHA-256 of the names, classes and contents of images; their order and root directory do not matter.

    Of a torch Dataset, the pixels of at most `_NUM_HASHED` images are read.

    Raises:
        DataError: if an image cannot be read.
    """
    from imago.data.dataset import LabeledArray, LabeledFiles

    order = sorted(range(len(samples)), key=lambda index: samples.names[index])
    labeled = [text for index in order for text in (samples.names[index], class_names[samples.labels[index]])]
    digest = hashlib.sha256(encode_names(labeled))
    if samples.content_digest:
        digest.update(samples.content_digest.encode())
        return digest.hexdigest()
    is_torch_dataset = not isinstance(samples, (LabeledArray, LabeledFiles))
    for content in _contents(samples, order[:: math.ceil(len(order) / _NUM_HASHED) if is_torch_dataset else 1]):
        digest.update(content)
    return digest.hexdigest()


def sampled_digest(splits: "Splits") -> str:
    """Return a SHA-256 of the contents of at most `_NUM_SAMPLED` images of each split, at regular intervals.

    The fingerprint of the data depends on the contents of a torch Dataset only, whose images are not read here.

    Raises:
        DataError: if an image cannot be read.
    """
    from imago.data.dataset import LabeledArray, LabeledFiles

    digest = hashlib.sha256()
    for samples in (part for _, part in splits.items() if isinstance(part, (LabeledArray, LabeledFiles))):
        indices = range(0, len(samples), max(1, math.ceil(len(samples) / _NUM_SAMPLED)))
        for content in _contents(samples, indices):
            digest.update(content)
    return digest.hexdigest()


def _contents(samples: "Samples", indices: Sequence[int]) -> Iterator[bytes]:
    """Yield the SHA-256 of some files, or the shape and pixels of other images; raise a DataError if one is missing."""
    from imago.data.dataset import LabeledFiles

    if not isinstance(samples, LabeledFiles):
        for pixels in map(samples.read, indices):
            yield f"{pixels.shape}".encode() + pixels.tobytes()
        return
    from imago.data.examine import map_in_threads

    try:
        yield from map_in_threads(
            lambda index: sha256_of(samples.root / samples.names[index]).encode(), indices, "fingerprint"
        )
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; try again.") from error


def run_split(predictor: Predictor, data: "ImageDataModule", split: str) -> LabeledOutputs:
    """Run the network on every image of a split; return logits, probabilities and labels.

    `data` must be set up, and gets the network's preprocess.

    Raises:
        DataError: if the outputs are not the classes of the data, if the network lacks one of them, if outputs are not
            finite, or if an image was lost or read twice.
    """
    from tqdm import tqdm

    network_labels = output_indices(predictor, data.class_names)
    data.preprocess = predictor.preprocess
    loaders = [data.evaluation_loader(name) for name, _ in data.splits.items() if split in (name, "all")]
    num_batches = sum(map(len, loaders))
    samples = split_samples(data, split)
    expected = network_labels[samples.labels]
    logits = np.empty((len(expected), len(predictor.class_names)), np.float32)  # for many classes the largest array
    labels, best_probabilities, num_read = [], [], 0
    for images, batch_labels in tqdm(
        chain(*loaders), desc=split, total=num_batches, unit="batch", leave=False, disable=None
    ):
        batch_logits, probabilities = predictor.predict(images.numpy())
        logits[num_read : num_read + len(batch_logits)] = batch_logits[: max(0, len(expected) - num_read)]
        num_read += len(batch_logits)
        best_probabilities.append(probabilities.max(axis=1))
        labels.append(network_labels[batch_labels.numpy()])
    all_labels, all_best = np.concatenate(labels), np.concatenate(best_probabilities)
    if not np.array_equal(all_labels, expected):
        raise DataError(
            f"{num_read:,} of {len(expected):,} images of {split} were read, or in another order: the "
            "dataset changed while it was read; try again."
        )
    check_finite(logits)
    temperature = predictor.calibration_temperature
    return LabeledOutputs(predictor.class_names, all_labels, logits, all_best, temperature, samples.groups)


def output_indices(predictor: "Predictor | Classifier", class_names: Sequence[str]) -> np.ndarray:
    """Return for each class of the data its index among the outputs; raise a DataError if they are something else."""
    if not predictor.predicts_classes:
        raise DataError(
            f"the run predicts {join_names(predictor.class_names)} with targets of its own, and not the classes of the "
            "data, so its labels are unknown here; the result of its own test is in summary.json."
        )
    return match_classes(class_names, predictor.class_names)


def validate(
    checkpoint: Path, data: "ImageDataModule", accelerator: str, tta: str = "none", trust: Sequence[str] = ()
) -> LabeledOutputs:
    """Run a checkpoint on the validation images, in fp32 and without a temperature; see `run_split`."""
    return run_split(load_predictor(checkpoint, accelerator, tta, is_calibrated=False, trust=trust), data, "val")


def match_classes(class_names: Sequence[str], network_class_names: Sequence[str]) -> np.ndarray:
    """Return for each class of a dataset its index among the classes of the network, int64.

    Raises:
        DataError: if the network lacks one, because it can never predict that class.
    """
    names = [unicodedata.normalize("NFC", name) for name in network_class_names]
    # Of "n01440764 tench, Tinca tinca", as the classes of ImageNet are named, the data may have either part.
    parts = [(first, rest, rest.partition(",")[0]) for first, _, rest in (name.partition(" ") for name in names)]
    aliases = [{*words} if WORDNET_ID.fullmatch(words[0]) else {} for words in parts]
    counts = Counter(chain.from_iterable(aliases))
    indices = {word: index for index, words in enumerate(aliases) for word in words if counts[word] == 1}
    indices |= {name: index for index, name in enumerate(names)}
    matches = {name: indices.get(unicodedata.normalize("NFC", name)) for name in class_names}
    if missing := [name for name, index in matches.items() if index is None]:
        raise DataError(
            f"the dataset has classes that the network lacks: {join_names(map(repr, missing))}; the network has "
            f"{join_names(map(repr, network_class_names))}. Rename or remove their folders."
        )
    return np.array(list(matches.values()), np.int64)


def check_finite(logits: np.ndarray) -> None:
    """Raise a `DataError` if the outputs of a network contain NaN or infinity."""
    if not np.isfinite(logits).all():
        raise DataError("the network's outputs contain NaN or infinity; use another checkpoint.")
