"""Decode every image of a dataset once, in threads, and cache the results."""

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from imago.data.image_record import IMAGE_RECORD_DTYPE, examine_file
from imago.files import atomic_write, decode_names, encode_names
from imago.resources import available_cores

if TYPE_CHECKING:
    from imago.data.dataset import LabeledFiles

log = logging.getLogger(__name__)

_SCHEMA_VERSION = 2  # part of the file name, increased when the same file would get another record
# Images per thread that are decoded before the first of them is used: bounds the memory; our own choice.
_NUM_AHEAD_PER_THREAD = 16
DAMAGED_NPZ = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # raised for missing or damaged files
_NO_STATE = (-1, -1)  # matches no file, so that the file is decoded again next time
_NO_RECORD = np.zeros((), IMAGE_RECORD_DTYPE)[()]

ResultsByName = dict[str, tuple[tuple[int, int], np.void]]  # by file name: size and modification time, and the record


@dataclass(frozen=True)
class Examination:
    """Records of N images."""

    records: np.ndarray  # (N,) of `IMAGE_RECORD_DTYPE`; empty for an image that cannot be decoded
    errors: tuple[str, ...]  # error message of each image, "" for a good one

    @property
    def is_good(self) -> np.ndarray:
        """Whether each image can be decoded, bool (N,)."""
        return np.array([not error for error in self.errors], bool)


def examine(files: "LabeledFiles", cache_dir: Path) -> Examination:
    """Decode all files that have no result yet; errors are recorded and not raised.

    A result is reused if size and modification time of the file are unchanged, and the image is not too large. The
    results are kept in `cache_dir`, one file per dataset, also those of interrupted examinations.
    """
    root_hash = hashlib.blake2b(os.fsencode(files.root.resolve()), digest_size=8).hexdigest()
    results_file = cache_dir / f"examined-{_SCHEMA_VERSION}-{root_hash}.npz"
    results = _load_results(results_file)
    states = list(zip(files.num_bytes.tolist(), files.mtime_ns.tolist(), strict=True))

    def is_new(index: int) -> bool:
        state, record = results.get(files.names[index], (_NO_STATE, _NO_RECORD))
        return state != states[index] or int(record["width"]) * int(record["height"]) > files.max_pixels

    new_indices = list(filter(is_new, range(len(files))))
    errors = [""] * len(files)
    try:
        paths, limit = files.paths, files.max_pixels
        decoded = map_in_threads(lambda index: examine_file(paths[index], limit), new_indices, "examining")
        for index, (record, errors[index]) in zip(new_indices, decoded, strict=True):
            # Unreadable files are decoded again: a missing permission may be granted without a change of the file.
            results[files.names[index]] = (_NO_STATE if errors[index] else states[index], record)
    finally:
        if new_indices:
            _save_results(results_file, results)
    return Examination(np.array([results[name][1] for name in files.names], IMAGE_RECORD_DTYPE), tuple(errors))


def map_in_threads(function: Callable[[int], Any], indices: Sequence[int], description: str) -> Iterator[Any]:
    """Yield `function(index)` for each index in order, computed in one thread per core, with bounded memory."""
    step = available_cores() * _NUM_AHEAD_PER_THREAD
    with ThreadPoolExecutor(available_cores()) as threads:
        parts = (threads.map(function, indices[start : start + step]) for start in range(0, len(indices), step))
        yield from progress(chain.from_iterable(parts), description, len(indices))


def progress(items: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
    """Yield images, or what is computed of each; the main process shows a progress bar if stderr is a terminal."""
    is_hidden = True if os.environ.get("LOCAL_RANK", "0") != "0" else None  # None: unless stderr is a terminal
    return tqdm(items, description, total, unit="image", leave=False, disable=is_hidden)


def _load_results(file: Path) -> ResultsByName:
    """Read the results; return an empty dict if the file is missing or damaged."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            names = decode_names(arrays["names"].tobytes())
            # If there are no results, `names` is one empty string, which the non-strict zip drops.
            return dict(
                zip(names, zip(map(tuple, arrays["states"].tolist()), arrays["records"], strict=True), strict=False)
            )
    except FileNotFoundError:
        return {}
    except DAMAGED_NPZ as error:
        log.warning("%s cannot be used, images are examined again: %s", file, error)
        return {}


def _save_results(file: Path, results: ResultsByName) -> None:
    """Write results atomically; a failure is logged, since the results are still in memory."""
    states, records = [state for state, _ in results.values()], [record for _, record in results.values()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, "wb") as opened:
            np.savez(
                opened,
                names=np.frombuffer(encode_names(results), np.uint8),
                states=np.array(states, np.int64).reshape(-1, 2),
                records=np.array(records, IMAGE_RECORD_DTYPE),
            )
    except OSError as error:
        log.warning("results cannot be kept, so all images are decoded again next time: %s: %s", file, error.strerror)
