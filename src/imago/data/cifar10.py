"""Provide CIFAR-10 (Krizhevsky 2009): 50,000 training images, from which val is split off, and 10,000 test images.

The files that torchvision downloads are saved as one array, which later runs read instead. Files and array are verified
by their hashes in every run, which takes 0.2 s each.
"""

from pathlib import Path
from typing import Any

import numpy as np

from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import LabeledArray, Samples, numbered_names
from imago.download import data_directories, download_dataset
from imago.errors import DataError
from imago.files import atomic_write, sha256_of
from imago.images import Preprocess

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_TRAIN, NUM_IMAGES = 50_000, 60_000
BATCHES_FOLDER = "cifar-10-batches-py"
# SHA-256 of the files that torchvision verifies by MD5. The files are pickles, so no file is opened before this check.
SHA256_BY_FILE = {
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}
ARRAY_SHA256 = "a5df45b06b394ba9438e531c53e656dc3741c0e13b7a35586d44ddb9c63a8381"  # of the saved array
SAMPLE_DTYPE = np.dtype([("image", np.uint8, (3, 32, 32)), ("label", np.uint8)])


class CIFAR10DataModule(ImageDataModule):
    """Load CIFAR-10 into memory.

    Args:
        root: the directory that contains `cifar-10-batches-py`; None: `data_dir`, then $IMAGO_DATA_DIR, then download.
        data_dir: the directory of the download and of the saved array.
        settings: arguments of `ImageDataModule`.
    """

    def __init__(self, root: str | None, data_dir: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root) if root else None
        self.data_dir = Path(data_dir)

    def load_dataset(self) -> ClassNamesAndSplits:
        """Return train and the official test split, in memory."""
        records = np.load(saved_array(self.root, self.data_dir))  # not mapped: the file may be truncated later
        splits: dict[str, Samples] = {}
        for split, samples in (("train", records[:NUM_TRAIN]), ("test", records[NUM_TRAIN:])):
            names = numbered_names(split, len(samples))
            splits[split] = LabeledArray(samples["image"], samples["label"].astype(np.int64), names)
        return CLASS_NAMES, splits

    def default_preprocess(self) -> Preprocess:
        """Keep the size; use mean and std of the 50,000 training images, as `channel_statistics` computes them."""
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return Preprocess(size=32, resize=32, crop="center", mean=mean, std=std)


def saved_array(root: Path | None, data_dir: Path) -> Path:
    """Return the file with all 60,000 records (`SAMPLE_DTYPE`, training images first); write it if there is none.

    The batch files are verified also if they are not needed: they may hold another set than the published one.

    Raises:
        DataError: if the files are missing and cannot be downloaded, are damaged, or are not those published.
    """
    if root is not None and not (root / BATCHES_FOLDER).is_dir():
        fault = f"has no folder {BATCHES_FOLDER}" if root.is_dir() else "does not exist"
        raise DataError(
            f"data.root={root} {fault}; set it to the folder that contains {BATCHES_FOLDER}; your own images "
            "need data=image_folder."
        )
    path = data_dir / "cache" / "cifar10.npy"
    is_intact = path.is_file() and sha256_of(path) == ARRAY_SHA256
    directories = [root] if root else data_directories(data_dir)
    source = next((directory for directory in directories if (directory / BATCHES_FOLDER).is_dir()), None)
    if source is None and not is_intact:
        source = _download(data_dir)
    if source is not None:
        _verify(source)
        if not is_intact:
            _save_array(source, path)
    return path


def _download(data_dir: Path) -> Path:
    """Download the folder `cifar-10-batches-py` into `data_dir`; raise a DataError within 10 s without a network."""
    from torchvision.datasets import CIFAR10

    remedy = f"put the folder {BATCHES_FOLDER} there or set IMAGO_DATA_DIR or data.root"
    download_dataset(CIFAR10, CIFAR10.url, data_dir, remedy)
    return data_dir


def _verify(root: Path) -> None:
    """Compare every file with its SHA-256 before any of them is unpickled."""
    for name, expected in SHA256_BY_FILE.items():
        path = root / BATCHES_FOLDER / name
        if not path.is_file():
            raise DataError(f"{path} is missing; copy the folder {BATCHES_FOLDER} again.")
        if (digest := sha256_of(path)) != expected:
            raise DataError(
                f"{path} is damaged or not that of the published CIFAR-10 (sha256 {digest[:12]}..., expected "
                f"{expected[:12]}...); copy it again, or write another set as image files for data=image_folder or "
                "data=image_list: files like this one can execute code."
            )


def _save_array(root: Path, path: Path) -> None:
    from torchvision.datasets import CIFAR10

    records = np.empty(NUM_IMAGES, SAMPLE_DTYPE)
    for samples, is_train in ((records[:NUM_TRAIN], True), (records[NUM_TRAIN:], False)):
        source = CIFAR10(str(root), train=is_train, download=False)
        samples["image"] = source.data.transpose(0, 3, 1, 2)
        samples["label"] = source.targets
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            np.save(file, records)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; 185 MB are needed there.") from error
