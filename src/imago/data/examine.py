"""Every image of a data set decoded once, side by side, and what came out kept for the next time."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imago.data.examine_cache import KeptResults, file_for, load_results, save_results
from imago.data.image_record import RECORD, examine_files, examine_pixels
from imago.errors import DataError

_CHUNK = 16  # files: short enough that Ctrl-C is answered within a second or two
_MIN_FOR_PROCESSES = 200  # files: below, starting processes takes longer than decoding in threads
_CHUNK_IN_MEMORY = 512


@dataclass(frozen=True)
class Examination:
    """What is known of N images.

    Attributes:
        records: (N,) of `RECORD`; of a bad image nothing but its content hash is filled in.
        errors: what is wrong with each, "" for a good one.
    """

    records: np.ndarray
    errors: tuple[str, ...]

    @property
    def is_good(self) -> np.ndarray:
        """Which images can be decoded, bool (N,)."""
        return np.array([not error for error in self.errors], bool)


def examine(
    root: Path, names: Sequence[str], num_bytes: np.ndarray, mtime_ns: np.ndarray, cache_dir: Path, num_processes: int
) -> Examination:
    """Decode all files that are not known yet as they are now; a bad one is written down, not raised.

    Args:
        root: folder of the data set, which `names` start from.
        names: of the N files.
        num_bytes: size of each, int64 (N,).
        mtime_ns: when each was changed, int64 (N,).
        cache_dir: where results are kept, one file for each root; those of interrupted examinations too.
        num_processes: that decode.

    Raises:
        DataError: if a process that decodes is ended from outside.
    """
    file = file_for(root, cache_dir)
    kept = load_results(file)
    places = kept.find(names, num_bytes, mtime_ns)
    # A bad one is tried again: what was wrong may be gone without a change of the file, such as a missing permission.
    new = np.array([i for i, place in enumerate(places) if place < 0 or kept.errors[place]], np.int64)
    if len(new):
        parts: list[tuple[np.ndarray, list[str]]] = []
        try:
            parts.extend(_decode([os.path.join(root, names[index]) for index in new], num_processes))
        finally:
            done = new[: sum(len(records) for records, _ in parts)]
            taken = tuple(names[index] for index in done)
            records = np.concatenate([np.zeros(0, RECORD), *(part for part, _ in parts)])
            errors = tuple(error for _, part in parts for error in part)
            kept = kept.updated(KeptResults(taken, num_bytes[done], mtime_ns[done], records, errors))
            save_results(file, kept)
        places = kept.find(names, num_bytes, mtime_ns)
    return Examination(kept.records[places], tuple(kept.errors[place] for place in places))


def examine_array(images: np.ndarray) -> Examination:
    """Describe images in memory, uint8 (N, 3, H, W); nothing can be wrong with them."""
    starts = range(0, len(images), _CHUNK_IN_MEMORY)
    parts = []
    with _progress(len(images)) as bar:
        for start in starts:
            parts.append(examine_pixels(images[start : start + _CHUNK_IN_MEMORY]))
            bar.update(len(parts[-1]))
    return Examination(np.concatenate([np.zeros(0, RECORD), *parts]), ("",) * len(images))


def _decode(paths: list[str], num_processes: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield records and errors of the files chunk by chunk, in their order."""
    if not paths:
        return
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with _pool(len(paths), min(num_processes, len(chunks))) as pool, _progress(len(paths)) as bar:
        try:
            for records, errors in pool.map(examine_files, chunks):
                yield records, errors
                bar.update(len(records))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)  # else leaving the block would wait for all of them
            if isinstance(error, BrokenProcessPool):
                raise DataError(
                    "a process that decodes images was ended from outside, mostly for want of memory; run it again: "
                    "what was done is kept."
                ) from error
            raise


def _pool(num_files: int, num_processes: int) -> Executor:
    if num_files < _MIN_FOR_PROCESSES:
        return ThreadPoolExecutor(num_processes)
    # Not by fork: torch's threads may hold locks at that moment, which nobody would open in the copy.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([examine_files.__module__])
    return ProcessPoolExecutor(num_processes, context, _start_process)


def _start_process() -> None:
    """Leave Ctrl-C to the main process, say nothing, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process of the pool has one"
    parent.join()
    os._exit(1)


def _progress(total: int):  # type: ignore[no-untyped-def]  # tqdm has no types
    from tqdm import tqdm

    return tqdm(total=total, desc="examining", unit="image", leave=False, disable=None)
