"""Decoded images in memory or on disk, so that only the first epoch decodes; the pixels are the same everywhere."""

import fcntl
import hashlib
import json
import logging
import mmap
import os
import sys
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from imago.data.dataset import LabeledFiles
from imago.errors import DataError
from imago.threads import one_intraop_thread

log = logging.getLogger(__name__)

SCHEMA = 1  # raised when what is in the files changes
_READ_AHEAD = 16  # images per thread that are decoded before they are written
# From asm-generic/mman-common.h: without it Linux refuses a private mapping that is larger than the memory.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_BROKEN_INDEX = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class ImageStore:
    """Decoded images of any sizes, one after another in one file that every process maps into its memory.

    Processes share the bytes, whether they are forked or spawned: only the file's name travels. In memory the file is
    one without a place in any folder, so the size of /dev/shm, small in containers, is no limit.

    Args:
        pixels: the file: uint8, image after image.
        shapes: int64 (N, 2), height and width of each image.
        handle: file descriptor to close with this store; a file in memory lives as long as it.
    """

    def __init__(self, pixels: Path, shapes: np.ndarray, handle: int | None = None) -> None:
        self.pixels = pixels
        self.shapes = shapes
        self._offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1) * 3)])
        self._bytes = _map(pixels, self.num_bytes)
        if handle is not None:
            weakref.finalize(self, os.close, handle)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all images."""
        return int(self._offsets[-1])

    def read(self, index: int) -> np.ndarray:
        """Give one image: uint8 (H, W, 3), without a copy. What is written into it stays in this process."""
        height, width = self.shapes[index]
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].reshape(height, width, 3)

    def __reduce__(self) -> tuple:
        return ImageStore, (self.pixels, self.shapes)


def build_store(
    files: LabeledFiles,
    class_names: Sequence[str],
    prepare: Callable[[np.ndarray], np.ndarray],
    where: str,
    folder: Path,
    key: Mapping[str, Any],
    num_threads: int,
) -> ImageStore:
    """Decode every image once; on disk, take what an earlier run or another process has decoded.

    Args:
        files: the images, N of them; the store has the same order.
        class_names: for the text of errors.
        prepare: makes of a decoded image uint8 (H, W, 3) what is kept.
        where: "ram" or "disk".
        folder: of the files on disk.
        key: what `prepare` does, as plain data: images that were prepared otherwise are not taken.
        num_threads: that decode at the same time.

    Raises:
        DataError: naming the image that cannot be read and its class, or the disk that is full.
    """
    decoded = _decoded(files, class_names, prepare, num_threads)
    try:
        with one_intraop_thread():
            return _build_in_memory(decoded) if where == "ram" else _build_on_disk(decoded, files, folder, key)
    except OSError as error:
        raise DataError(
            f"data.cache={where}: {folder if where == 'disk' else 'the memory'} cannot be written ({error.strerror}); "
            "data.cache=none decodes the images in every epoch."
        ) from error


def open_store(files: LabeledFiles, folder: Path, key: Mapping[str, Any]) -> ImageStore | None:
    """Give the images that `build_store` put on disk; None if they are not there, incomplete or of changed files."""
    try:
        return ImageStore(*_open_index(folder / _name(files, key)))
    except _BROKEN_INDEX:
        return None


def _build_in_memory(images: Iterator[np.ndarray]) -> ImageStore:
    handle = os.memfd_create("imago-images")
    try:
        with os.fdopen(handle, "wb", closefd=False) as file:
            shapes = _write(images, file)
    except BaseException:
        os.close(handle)
        raise
    return ImageStore(Path(f"/proc/{os.getpid()}/fd/{handle}"), shapes, handle)


def _build_on_disk(
    images: Iterator[np.ndarray], files: LabeledFiles, folder: Path, key: Mapping[str, Any]
) -> ImageStore:
    """Write the pixels, then the index, each whole or not at all, while other processes wait."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _name(files, key)
    with _lock(folder / f"{name}.lock"):
        store = open_store(files, folder, key)
        if store is not None:
            return store
        _drop_stale(files, folder, key)
        for left_over in folder.glob(f"{name}.*.part"):  # of a process that was killed
            left_over.unlink()
        with _whole(folder / f"{name}.pixels") as file:
            shapes = _write(images, file)
        names, text = _packed(files.names), _packed([_text(key)])
        with _whole(folder / f"{name}.npz") as file:
            np.savez(file, names=names, num_bytes=files.num_bytes, mtime_ns=files.mtime_ns, shapes=shapes, key=text)
        log.info("kept %s decoded images in %s", f"{len(files):,}", folder)
        return ImageStore(*_open_index(folder / name))


def _decoded(
    files: LabeledFiles,
    class_names: Sequence[str],
    prepare: Callable[[np.ndarray], np.ndarray],
    num_threads: int,
) -> Iterator[np.ndarray]:
    """Decode in threads, in order and only a little ahead."""
    is_first_rank = os.environ.get("LOCAL_RANK", "0") == "0"
    progress = tqdm(
        total=len(files), desc="decoding", unit="image", leave=False, disable=None if is_first_rank else True
    )
    step = num_threads * _READ_AHEAD
    with progress, ThreadPoolExecutor(num_threads) as threads:
        for start in range(0, len(files), step):
            indices = range(start, min(start + step, len(files)))
            for image in threads.map(lambda index: prepare(files.read(index, class_names)), indices):
                yield image
                progress.update()


def _write(images: Iterator[np.ndarray], file: BinaryIO) -> np.ndarray:
    """Write the pixels and give the shapes, int64 (N, 2)."""
    shapes = []
    for image in images:
        file.write(np.ascontiguousarray(image).data)
        shapes.append(image.shape[:2])
    return np.array(shapes, np.int64).reshape(-1, 2)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbor that gets the name once it is complete and on the disk."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time pass; the lock of one that dies is free."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is decoding these images: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_index(place: Path) -> tuple[Path, np.ndarray]:
    pixels = place.with_name(f"{place.name}.pixels")
    with _index(place.with_name(f"{place.name}.npz")) as index:
        return pixels, index["shapes"]


@contextmanager
def _index(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    with path.open("rb") as file, np.load(file) as index:
        yield index


def _map(pixels: Path, num_bytes: int) -> np.ndarray:
    with pixels.open("rb") as file:
        if os.fstat(file.fileno()).st_size != num_bytes:
            raise ValueError(f"{pixels} is incomplete")
        # Private: nobody can change the file through it, and torch takes the arrays without a warning or a copy.
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        mapped = mmap.mmap(file.fileno(), num_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(mapped, np.uint8)


def _drop_stale(files: LabeledFiles, folder: Path, key: Mapping[str, Any]) -> None:
    """Delete what was kept of files that have changed since; what other splits or settings keep stays."""
    now = dict(zip(files.names, zip(files.num_bytes.tolist(), files.mtime_ns.tolist(), strict=True), strict=True))
    for index_file in folder.glob(f"{_root_name(files)}-*.npz"):
        try:
            with _index(index_file) as index:
                names, old_key = _unpacked(index["names"]), _unpacked(index["key"])[0]
                facts = zip(index["num_bytes"].tolist(), index["mtime_ns"].tolist(), strict=True)
                shared = [(now[name], fact) for name, fact in zip(names, facts, strict=True) if name in now]
        except _BROKEN_INDEX:
            log.info("decoding again: %s is damaged", index_file)
            _delete(index_file)
            continue
        if num_changed := sum(new != old for new, old in shared):
            log.info("decoding again: %s images have changed since they were kept", f"{num_changed:,}")
            _delete(index_file)
        elif shared and old_key != _text(key):
            log.info("decoding: the images that are kept were prepared otherwise (%s)", old_key)


def _delete(index_file: Path) -> None:
    for suffix in (".npz", ".pixels"):  # the index first: without it, nobody opens the pixels; locks may be held
        index_file.with_suffix(suffix).unlink(missing_ok=True)


def _name(files: LabeledFiles, key: Mapping[str, Any]) -> str:
    """Name a store after all that decides what is in it."""
    digest = hashlib.sha256(_text(key).encode())
    for part in (_packed(files.names), files.num_bytes, files.mtime_ns):
        digest.update(part.tobytes())
    return f"{_root_name(files)}-{digest.hexdigest()[:16]}"


def _root_name(files: LabeledFiles) -> str:
    return hashlib.sha256(os.fsencode(files.root.absolute())).hexdigest()[:12]


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, **key}, sort_keys=True)


def _packed(names: Sequence[str]) -> np.ndarray:
    """Put texts into bytes, whatever is in them: names of files may be no valid UTF-8."""
    return np.frombuffer("\0".join(names).encode(errors="surrogateescape"), np.uint8)


def _unpacked(packed: np.ndarray) -> list[str]:
    return packed.tobytes().decode(errors="surrogateescape").split("\0")
