"""Write a dataset in chunks for data=litdata, with litdata's own `optimize`; image files are copied as they are.

    python tools/write_litdata.py ~/flowers ~/flowers-chunks        # a folder per class, or train/ val/ test/ of them
    python tools/write_litdata.py list.csv ~/flowers-chunks         # a CSV with the columns path,label[,split]
    python tools/write_litdata.py cifar10 ~/cifar10-chunks          # its arrays, from data/ or IMAGO_DATA_DIR
    python tools/write_litdata.py --index ~/other-chunks            # write only imago.json of chunks that exist

Samples are shuffled once, so that each chunk has all classes; --in-order leaves them as they are. Published splits are
written to train, val and test folders. imago.json beside each index.json holds class names, labels, and the SHA-256 of
each chunk. Copy the directory to a store as it is: aws s3 sync ~/flowers-chunks s3://BUCKET/flowers
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from imago.data.chunks import SIDECAR, ChunkFiles, LabeledChunks, read_set
from imago.data.cifar10 import CIFAR10DataModule
from imago.data.dataset import LabeledArray, LabeledFiles, Samples
from imago.data.examine import examine
from imago.data.file_datamodule import ImageFolderDataModule, ImageListDataModule
from imago.errors import ConfigError, DataError, UserError
from imago.files import sha256_of, write_text
from imago.images import MAX_PIXELS
from imago.paths import PROJECT_ROOT
from imago.seeding import random_permutation
from imago.system import START_METHOD
from imago.text import counted, join_names

SEED = 0  # of the order in which samples are written


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the dataset, or only imago.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="folder, CSV or cifar10")
    parser.add_argument("target", type=Path, help="directory of the chunks")
    parser.add_argument("--chunk-mb", type=float, default=64, help="size of a chunk in 10^6 bytes (default: 64)")
    parser.add_argument("--in-order", action="store_true", help="do not shuffle")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--index", action="store_true", help="write only imago.json of existing chunks")
    parsed = parser.parse_args(arguments)
    if parsed.index:
        write_sidecar(parsed.target.expanduser())
        return
    if not parsed.source:
        parser.error("type the source and the target")
    if not find_spec("litdata"):
        raise ConfigError("litdata is not installed: pip install -e '.[litdata]'")
    class_names, published = open_source(parsed.source)
    folders = {split: parsed.target.expanduser() / (split if len(published) > 1 else "") for split in published}
    for folder in folders.values():
        if folder.exists() and any(folder.iterdir()):  # litdata would delete its chunks
            raise ConfigError(f"{folder} is not empty; empty it, or write to another directory.")
    for split, samples in published.items():
        check_images(samples)
        directory = folders[split]
        order = np.arange(len(samples)) if parsed.in_order else random_permutation(len(samples), SEED)
        write_chunks(directory, samples.take(order), int(parsed.chunk_mb * 1e6), parsed.workers)
        num_chunks = write_sidecar(directory, class_names)
        print(f"wrote {len(samples):,} samples in {num_chunks} chunks to {directory}")
    print(f"next: python src/train.py data=litdata data.root={parsed.target}")


def open_source(source: str) -> tuple[tuple[str, ...], Mapping[str, Samples]]:
    """Return the class names and the published splits of a folder, a CSV or CIFAR-10."""
    loading: dict[str, Any] = {"batch_size": 1, "num_workers": 0, "augment": {}, "seed": 0}
    files = {"cache_dir": tempfile.gettempdir(), "max_pixels": MAX_PIXELS}
    if source == "cifar10":
        return CIFAR10DataModule(None, str(PROJECT_ROOT / "data"), **loading).load_dataset()
    if source.endswith(".csv"):
        return ImageListDataModule(source, **files, **loading).load_dataset()
    return ImageFolderDataModule(root=source, **files, **loading).load_dataset()


def check_images(samples: Samples) -> None:
    """Decode every file; raise a DataError that lists those that cannot be read: they would be copied as they are."""
    if isinstance(samples, LabeledFiles):
        with tempfile.TemporaryDirectory() as cache:
            errors = examine(samples, Path(cache)).errors
        if bad := [name for name, error in zip(samples.names, errors, strict=True) if error]:
            raise DataError(f"{counted(len(bad), 'image')} cannot be read: {join_names(bad, 10)}; remove or mend them.")


def write_chunks(directory: Path, samples: Samples, num_bytes: int, num_workers: int = 1) -> None:
    """Write samples in their order, in chunks of about `num_bytes`."""
    import litdata

    with tempfile.TemporaryDirectory() as scratch:  # instead of litdata's own directories in /tmp
        os.environ |= {"DATA_OPTIMIZER_CACHE_FOLDER": scratch, "DATA_OPTIMIZER_DATA_CACHE_FOLDER": scratch}
        litdata.optimize(
            partial(stored_sample, samples),
            list(range(len(samples))),
            str(directory),
            chunk_bytes=num_bytes,
            num_workers=num_workers,
            keep_data_ordered=True,
            reorder_files=False,
            verbose=False,
            start_method=START_METHOD,
        )


def stored_sample(samples: Any, index: int) -> dict[str, Any]:
    """Return what litdata stores of a sample: the bytes of an image file, or an array (H, W, 3)."""
    import litdata

    label = int(samples.labels[index])
    if isinstance(samples, LabeledArray):
        return {"image": np.ascontiguousarray(samples.read(index)), "label": label}
    # As litdata.Image: plain bytes would become rows of an Arrow table if pyarrow is installed.
    return {"image": litdata.Image(path=str(samples.root / samples.names[index])), "label": label}


def write_sidecar(directory: Path, class_names: Sequence[str] = ()) -> int:
    """Write imago.json: the labels as the chunks hold them, and SHA-256 of the chunks; return the number of chunks."""
    files = ChunkFiles(str(directory), directory, 0)
    chunks, sidecar, _ = read_set(files, "")
    num_samples = sum(chunk.num_samples for chunk in chunks)
    files = ChunkFiles(str(directory), directory, 0, chunks=tuple(chunks))
    samples = LabeledChunks(files, np.arange(num_samples), np.zeros(num_samples, np.int64), MAX_PIXELS)
    content = {
        "class_names": list(class_names or sidecar.get("class_names", [])),
        "labels": [samples.stored(index)[1] for index in range(num_samples)],
        "sha256": {chunk.name: sha256_of(directory / chunk.name) for chunk in chunks},
    }
    write_text(directory / SIDECAR, json.dumps(content) + "\n")
    return len(chunks)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a file that has gone
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
