"""Build small examined datasets of two classes."""

from collections.abc import Sequence

import numpy as np
from drawn_images import photo, records_of

from imago.data.examine import Examination
from imago.dataset_check.checked_dataset import CheckedDataset
from imago.images import SPLITS

# (which image, split, label) of each image: 0 is in train twice and in test, 1 in train and val, 2 in two classes; 3 to
# 8 occur once.
ROWS = [
    *((0, "train", 0), (0, "train", 0), (1, "train", 0), (2, "train", 0), (2, "train", 1), (3, "train", 1)),
    *((1, "val", 0), (4, "val", 1), (5, "val", 1)),
    *((0, "test", 0), (6, "test", 1), (7, "test", 0), (8, "test", 1)),
]


def checked_dataset(
    rows: Sequence[tuple[int, str, int]],
    bad: Sequence[int] = (),
    class_names: tuple[str, ...] = ("ant", "bee"),
    names: tuple[str, ...] = (),
) -> CheckedDataset:
    """Return a set from rows as in ROWS, in the order of the splits.

    Args:
        rows: the images.
        bad: indices of the rows that cannot be read.
        class_names: the index of a name is its label.
        names: file names; by default the number of the row.
    """
    images = {image: records_of(photo(image, 16)) for image, _, _ in rows}
    records = np.concatenate([images[image] for image, _, _ in rows])
    records[list(bad)] = 0
    return CheckedDataset(
        class_names,
        names or tuple(f"{index}.png" for index in range(len(rows))),
        np.array([SPLITS.index(split) for _, split, _ in rows]),
        np.array([label for _, _, label in rows]),
        Examination(records, tuple("is empty" if index in bad else "" for index in range(len(rows)))),
    )
