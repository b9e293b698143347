"""Decode every image of a data set once in parallel, and keep the results for the next time."""

import hashlib
import logging
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from imago.data.image_record import RECORD, examine_files, examine_pixels
from imago.errors import DataError
from imago.files import atomic_write, decode_names, encode_names

log = logging.getLogger(__name__)

_VERSION = 1  # increased when the same file would get another record; results of other versions are not used
_CHUNK = 16  # files: short enough that Ctrl-C takes effect within a second or two
_CHUNK_IN_MEMORY = 512
_MIN_FOR_PROCESSES = 200  # files: for fewer, starting processes takes longer than decoding in threads


@dataclass(frozen=True)
class Examination:
    """Records of N images.

    Attributes:
        records: (N,) of `RECORD`; for a bad image only the content hash is filled in.
        errors: error message of each image, "" for a good one.
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
    """Decode all files that have no result yet; errors are recorded and not raised.

    Args:
        root: directory of the data set, which `names` are relative to.
        names: of the N files.
        num_bytes: size of each file, int64 (N,).
        mtime_ns: modification time of each file, int64 (N,).
        cache_dir: directory of the results, one file per root; results of interrupted examinations are kept, too.
        num_processes: that decode.

    Raises:
        DataError: if a decoding process is killed.
    """
    root_hash = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    file = cache_dir / f"examined-{root_hash}.npz"
    kept = _load_results(file)
    states = list(zip(num_bytes.tolist(), mtime_ns.tolist(), strict=True))
    # Bad files are decoded again: a cause such as a missing permission may be gone without a change of the file.
    new = [i for i, name in enumerate(names) if name not in kept or kept[name].error or kept[name][:2] != states[i]]
    if new:
        try:
            decoded = _decode([os.path.join(root, names[index]) for index in new], num_processes)
            for index, (record, error) in zip(new, decoded, strict=True):
                kept[names[index]] = _Result(*states[index], record, error)
        finally:
            _save_results(file, kept)
    found = [kept[name] for name in names]
    return Examination(_stack([result.record for result in found]), tuple(result.error for result in found))


def examine_array(images: np.ndarray) -> Examination:
    """Compute records of images in memory, uint8 (N, 3, H, W); none of them has an error."""
    records = [np.zeros(0, RECORD)]
    with _progress(len(images)) as bar:
        for start in range(0, len(images), _CHUNK_IN_MEMORY):
            records.append(examine_pixels(images[start : start + _CHUNK_IN_MEMORY]))
            bar.update(len(records[-1]))
    return Examination(np.concatenate(records), ("",) * len(images))


class _Result(NamedTuple):
    """Result of one file, with size and modification time of the file at its examination."""

    num_bytes: int
    mtime_ns: int
    record: np.void
    error: str


def _load_results(file: Path) -> dict[str, _Result]:
    """Read the kept results by file name; return none if they are missing, damaged or of another version."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            if arrays["version"] == _VERSION and arrays["records"].dtype == RECORD:
                # The last name is empty, see `_save_results`.
                names, errors = (decode_names(arrays[column].tobytes())[:-1] for column in ("names", "errors"))
                states = arrays["num_bytes"].tolist(), arrays["mtime_ns"].tolist()
                return dict(zip(names, map(_Result, *states, arrays["records"], errors), strict=True))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be used, images are examined again: %s", file, error)
    return {}


def _save_results(file: Path, results: dict[str, _Result]) -> None:
    """Write results atomically; a failure is logged, since the results are still in memory."""
    # An empty last entry distinguishes an empty list from a list with one empty name.
    texts = {"names": [*results, ""], "errors": [*(result.error for result in results.values()), ""]}
    arrays = {column: np.frombuffer(encode_names(text), np.uint8) for column, text in texts.items()}
    for column in ("num_bytes", "mtime_ns"):
        arrays[column] = np.array([getattr(result, column) for result in results.values()], np.int64)
    arrays["records"] = _stack([result.record for result in results.values()])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, "wb") as opened:
            np.savez(opened, version=np.array(_VERSION), **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.warning("results cannot be kept, so all images are decoded again next time: %s: %s", file, error.strerror)


def _stack(records: Sequence[np.void]) -> np.ndarray:
    # Several times faster than np.array; numpy's scalars are buffers, which its annotations do not declare.
    return np.frombuffer(b"".join(records), RECORD)  # type: ignore[arg-type]


def _decode(paths: list[str], num_processes: int) -> Iterator[tuple[np.void, str]]:
    """Yield record and error of each file, in their order."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with _pool(len(paths), min(num_processes, len(chunks))) as pool, _progress(len(paths)) as bar:
        try:
            for records, errors in pool.map(examine_files, chunks):
                yield from zip(records, errors, strict=True)
                bar.update(len(records))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)  # else leaving the block would wait for all chunks
            if isinstance(error, BrokenProcessPool):
                raise DataError(
                    "a process that decodes images was killed, probably for lack of memory; run the command again: "
                    "the results so far are kept."
                ) from error
            raise


def _pool(num_files: int, num_processes: int) -> Executor:
    if num_files < _MIN_FOR_PROCESSES:
        return ThreadPoolExecutor(num_processes)
    # Not fork: threads of torch may hold locks at that moment, which would stay locked in the copy.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(num_processes, context, _start_process)


def _start_process() -> None:
    """Ignore Ctrl-C, which the main process handles, log nothing, and exit when the main process exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process of the pool has a parent"
    parent.join()
    os._exit(1)


def _progress(total: int) -> tqdm:
    return tqdm(total=total, desc="examining", unit="image", leave=False, disable=None)
