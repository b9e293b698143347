"""Find the images of an evaluation that its run was trained on, whatever the dataset is named in the command."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imago.errors import ConfigError, DataError
from imago.files import sha256_of

if TYPE_CHECKING:
    from imago.data.dataset import LabeledArray, LabeledFiles, Samples

_UNKNOWN = "whether the run was trained on some of these images is unknown"


def trained_on_note(
    samples: "Samples", class_names: Sequence[str], train: "Samples", train_class_names: Sequence[str]
) -> str:
    """Return a note with the number of images that are copies of training images of the run; "" without any.

    Images are compared if both datasets are files, or both are in memory; otherwise, the note says that they are not.

    Raises:
        ConfigError: if some are not copies, but the training images themselves.
    """
    from imago.data.dataset import LabeledArray, LabeledFiles

    if isinstance(samples, LabeledFiles) and isinstance(train, LabeledFiles):
        from imago.inference.run_split import match_classes

        try:
            labels = match_classes(class_names, train_class_names)[samples.labels]
        except DataError as error:  # the images of the run have other classes now
            return f"{_UNKNOWN}: {error}"
        num_same, num_copies = _count_files(samples, labels, train)
    elif isinstance(samples, LabeledArray) and isinstance(train, LabeledArray):
        num_same, num_copies = _count_arrays(samples, train)
    else:
        return f"{_UNKNOWN}: the datasets are of different kinds"
    if num_same:
        raise ConfigError(
            f"{num_same:,} of these {len(samples):,} images are training images of the run; type data= without them, "
            "or leave data= out to use the split of the training."
        )
    text = f"{num_copies:,} of these {len(samples):,} images are copies of images that the run was trained on"
    return text if num_copies else ""


def _count_files(samples: "LabeledFiles", labels: np.ndarray, train: "LabeledFiles") -> tuple[int, int]:
    """Count the files that are in `train`, and those that have the content of one there; class and size are equal.

    `labels` are those that the samples have in `train`, int64 (N,).
    """
    found, known = _files_by_size(samples, labels), _files_by_size(train, train.labels)
    num_same = num_copies = 0
    for key in found.keys() & known.keys():
        others = found[key] - known[key]
        num_same += len(found[key]) - len(others)
        digests = {sha256_of(file) for file in known[key]} if others else set()
        num_copies += sum(sha256_of(file) in digests for file in others)
    return num_same, num_copies


def _files_by_size(files: "LabeledFiles", labels: np.ndarray) -> dict[tuple[int, int], set[Path]]:
    """Return the files, in real directories, by label and number of bytes."""
    by_size, directories = defaultdict(set), {path: Path(realpath(path)) for path in {p.parent for p in files.paths}}
    for path, label, num_bytes in zip(files.paths, labels.tolist(), files.num_bytes.tolist(), strict=True):
        by_size[label, num_bytes].add(directories[path.parent] / path.name)
    return by_size


def _count_arrays(samples: "LabeledArray", train: "LabeledArray") -> tuple[int, int]:
    """Count the images with the pixels of one of `train`: those with its name too, and the others."""
    own, known = ([hashlib.sha256(image.tobytes()).digest() for image in split.images] for split in (samples, train))
    num_same = len({*zip(samples.names, own, strict=True)} & {*zip(train.names, known, strict=True)})
    digests = set(known)
    return num_same, sum(digest in digests for digest in own) - num_same
