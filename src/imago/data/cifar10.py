"""CIFAR-10 (Krizhevsky 2009): 50,000 training images, from which val is split, and the official 10,000 for the test.

torchvision's own batch files are checked once by hash and kept as one array that later runs map in milliseconds.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from imago.data.datamodule import Found, ImageDataModule
from imago.data.dataset import LabeledArray, Samples
from imago.download import is_reachable
from imago.errors import DataError
from imago.images import Preprocess

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_TRAIN = 50_000
FOLDER = "cifar-10-batches-py"
# Of the files whose md5 torchvision knows; the files are pickles, so nothing opens them before this check.
SHA256 = {
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}
RECORD = np.dtype([("image", np.uint8, (3, 32, 32)), ("label", np.uint8)])


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10, in memory.

    Args:
        root: folder that holds `cifar-10-batches-py`; None: `data_dir`, then $IMAGO_DATA_DIR, then download.
        data_dir: where a download and the array kept for later runs go.
        settings: the arguments of `ImageDataModule`.
    """

    def __init__(self, root: str | None, data_dir: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root) if root else None
        self.data_dir = Path(data_dir)

    def prepare_data(self) -> None:
        """Find or download the batch files and write the array, once."""
        kept_array(self.root, self.data_dir)

    def find_images(self) -> Found:
        """Map the array; val will be a part of the 50,000, and the official test set stays apart."""
        records = np.load(kept_array(self.root, self.data_dir), mmap_mode="r")
        parts: dict[str, Samples] = {}
        for split, part in (("train", records[:NUM_TRAIN]), ("test", records[NUM_TRAIN:])):
            names = tuple(f"{split}/{place:05d}" for place in range(len(part)))
            parts[split] = LabeledArray(part["image"], part["label"].astype(np.int64), names)
        return CLASS_NAMES, parts

    def default_preprocess(self) -> Preprocess:
        """No resizing; mean and std of the 50,000 training images, as `channel_stats` computes them."""
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return Preprocess(size=32, resize=32, crop="center", mean=mean, std=std)


def kept_array(root: Path | None, data_dir: Path) -> Path:
    """Give the file with all 60,000 records (dtype `RECORD`, training images first), written on first use.

    Raises:
        DataError: if the batch files are nowhere and cannot be downloaded, or are damaged.
    """
    if root is not None and not (root / FOLDER).is_dir():
        fault = f"has no folder {FOLDER}" if root.is_dir() else "does not exist"
        raise DataError(f"data.root={root} {fault}; give the folder that contains {FOLDER}.")
    kept = data_dir / "cache" / "cifar10.npy"
    if kept.is_file() and kept.stat().st_size > RECORD.itemsize * 60_000:
        return kept
    _write_array(_verified_batches(root or find_batches(data_dir)), kept)
    return kept


def find_batches(data_dir: Path) -> Path:
    """Give the folder that contains `cifar-10-batches-py`, downloading it into `data_dir` if it is nowhere.

    Raises:
        DataError: within 10 s, if it is nowhere and there is no network.
    """
    places = [data_dir] + [Path(os.environ[name]) for name in ("IMAGO_DATA_DIR",) if os.environ.get(name)]
    for place in places:
        if (place / FOLDER).is_dir():
            return place
    from torchvision.datasets import CIFAR10

    if not is_reachable(CIFAR10.url):
        raise DataError(
            f"CIFAR-10 is not in {' or '.join(map(str, places))} and cannot be downloaded (no network); put the folder "
            f"{FOLDER} there or set IMAGO_DATA_DIR or data.root. data=shapes needs no data and no network."
        )
    try:
        CIFAR10(str(data_dir), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"the download of CIFAR-10 into {data_dir} failed: {error}; run the command again.") from error
    return data_dir


def _verified_batches(root: Path) -> Path:
    for name, expected in SHA256.items():
        path = root / FOLDER / name
        if not path.is_file():
            raise DataError(f"{path} is missing; copy the folder {FOLDER} again.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise DataError(f"{path} is damaged (sha256 {found[:12]}..., expected {expected[:12]}...); copy it again.")
    return root


def _write_array(root: Path, kept: Path) -> None:
    """Write to a temporary name first, so that an interrupted run never leaves half an array behind."""
    from torchvision.datasets import CIFAR10

    records = np.empty(60_000, RECORD)
    for part, is_train in ((slice(0, NUM_TRAIN), True), (slice(NUM_TRAIN, None), False)):
        source = CIFAR10(str(root), train=is_train, download=False)
        records["image"][part] = source.data.transpose(0, 3, 1, 2)
        records["label"][part] = source.targets
    part_file = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with part_file.open("wb") as file:
            np.save(file, records)
        part_file.replace(kept)
    except OSError as error:
        part_file.unlink(missing_ok=True)
        raise DataError(f"{kept} cannot be written: {error.strerror}; 185 MB are needed there.") from error
