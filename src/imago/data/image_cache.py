"""Keep decoded images in memory or on disk, so that only the first epoch decodes; the pixels are the same."""

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
from typing import IO, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from imago.data.dataset import LabeledFiles
from imago.errors import ConfigError, DataError
from imago.files import atomic_write, decode_names, encode_names, remove_partial_files
from imago.images import FORMATS
from imago.resources import available_memory_bytes, free_disk_bytes
from imago.threads import one_intraop_thread

log = logging.getLogger(__name__)

CACHE_MODES = ("none", "ram", "disk", "auto")
_SCHEMA = 1  # increased when the content of the files changes
_MAX_HEADERS = 500  # images whose size is read for an estimate
_READ_AHEAD = 16  # images per thread that are decoded before they are written
_SMALLER = "a lower data.decoded_px or preprocess.size makes them smaller"
# From asm-generic/mman-common.h: without it Linux refuses a private mapping that is larger than the memory.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_DAMAGED_INDEX = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def choose_cache(
    mode: str, estimated_bytes: int, folder: Path, num_processes: int, kept_bytes: int = 0
) -> tuple[str, str]:
    """Decide where decoded images are kept.

    Args:
        mode: one of `CACHE_MODES`. "auto" is "disk" if all are there already, else "ram" if they fit in half of the
            available memory, else "disk" if they fit in half of its free space, else "none".
        estimated_bytes: of all decoded images.
        folder: a directory on the disk.
        num_processes: that will each keep their own copy in memory; on disk they share one.
        kept_bytes: the part that an earlier run has left in `folder`.

    Returns:
        "none", "ram" or "disk", and the reason in words.

    Raises:
        ConfigError: if `mode` is none of these, or the memory or disk is too small for it.
    """
    if mode not in CACHE_MODES:
        raise ConfigError(f"data.cache={mode} is not one of {', '.join(CACHE_MODES)}.")
    if mode == "none":
        return "none", "as typed"
    needed = {"ram": estimated_bytes * num_processes, "disk": estimated_bytes - kept_bytes}
    available = {"ram": available_memory_bytes() if hasattr(os, "memfd_create") else 0, "disk": free_disk_bytes(folder)}
    if mode != "auto":
        if needed[mode] > available[mode]:
            name, remedy = ("memory", "disk keeps them on disk") if mode == "ram" else (folder, "none disables it")
            raise ConfigError(
                f"data.cache={mode}: the decoded images need {_format_bytes(needed[mode])}, and {name} has "
                f"{_format_bytes(available[mode])} available; data.cache={remedy}, {_SMALLER}."
            )
        return mode, f"{_format_bytes(estimated_bytes)}, as typed"
    if needed["disk"] <= 0:
        return "disk", f"{_format_bytes(estimated_bytes)}, kept in {folder} by an earlier run"
    for kind in ("ram", "disk"):
        if needed[kind] * 2 <= available[kind]:
            return kind, f"{_format_bytes(needed[kind])} of {_format_bytes(available[kind])} available"
    memory, disk = (_format_bytes(available[kind]) for kind in ("ram", "disk"))
    size = _format_bytes(needed["ram"])
    return "none", f"{size} are over half of the {memory} of memory and {disk} of disk; {_SMALLER}"


def estimate_bytes(files: LabeledFiles, sides: Callable[[int, int], tuple[int, int]]) -> int:
    """Estimate the bytes of all images once they are decoded and prepared, from the headers of some of them.

    Args:
        files: the images; those that cannot be read are skipped.
        sides: returns height and width of a prepared image, given those of the decoded one, in pixels.
    """
    num_pixels = []
    for index in np.unique(np.linspace(0, len(files) - 1, _MAX_HEADERS).astype(np.int64)):
        try:
            with Image.open(files.root / files.names[index], formats=FORMATS) as image:
                num_pixels.append(np.prod(sides(image.height, image.width)))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # reported when it is decoded
    return round(np.mean(num_pixels) * 3 * len(files)) if num_pixels else 0


class ImageCache:
    """Decoded images of any sizes, one after another in one file that every process maps into its memory.

    Forked and spawned processes share the bytes: only the file name is pickled. In memory the file is an anonymous one,
    so that the size of /dev/shm, which is small in containers, is no limit.

    Args:
        pixels: the file: uint8, image after image.
        shapes: int64 (N, 2), height and width of each image.
        handle: file descriptor that is closed together with this store; a file in memory exists until then.
    """

    def __init__(self, pixels: Path, shapes: np.ndarray, handle: int | None = None) -> None:
        self.pixels = pixels
        self.shapes = shapes
        self._offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1) * 3)])
        self._bytes = self._map()
        if handle is not None:
            weakref.finalize(self, os.close, handle)

    def __len__(self) -> int:
        return len(self.shapes)

    def __reduce__(self) -> tuple:
        return ImageCache, (self.pixels, self.shapes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all images."""
        return int(self._offsets[-1])

    def read(self, index: int) -> np.ndarray:
        """Return one image, uint8 (H, W, 3), without a copy; changes to it are visible in this process only."""
        height, width = self.shapes[index]
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].reshape(height, width, 3)

    def _map(self) -> np.ndarray:
        with self.pixels.open("rb") as file:
            if os.fstat(file.fileno()).st_size != self.num_bytes:
                raise ValueError(f"{self.pixels} is incomplete")
            # Private: the file cannot be changed through the mapping, and torch accepts the arrays without a copy.
            flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
            mapped = mmap.mmap(file.fileno(), self.num_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        return np.frombuffer(mapped, np.uint8)


def build_cache(
    files: LabeledFiles,
    class_names: Sequence[str],
    prepare: Callable[[np.ndarray], np.ndarray],
    where: str,
    folder: Path,
    key: Mapping[str, Any],
    num_threads: int,
) -> ImageCache:
    """Decode every image once; on disk, reuse what an earlier run or another process has decoded.

    Args:
        files: the N images; the store has the same order.
        class_names: for error messages.
        prepare: converts a decoded image, uint8 (H, W, 3), to the one that is kept.
        where: "ram" or "disk".
        folder: of the files on disk.
        key: what `prepare` does, as plain data: images that were prepared in another way are not reused.
        num_threads: that decode at the same time.

    Raises:
        DataError: naming the image that cannot be read and its class, or the disk that is full.
    """
    images = _decode(files, class_names, prepare, num_threads)
    try:
        with one_intraop_thread():
            return _build_in_memory(images) if where == "ram" else _build_on_disk(images, files, folder, key)
    except OSError as error:
        raise DataError(
            f"data.cache={where}: {folder if where == 'disk' else 'the memory'} cannot be written ({error.strerror}); "
            "data.cache=none decodes the images in every epoch."
        ) from error


def open_cache(files: LabeledFiles, folder: Path, key: Mapping[str, Any]) -> ImageCache | None:
    """Open the images that `build_cache` kept on disk; return None if they are missing, incomplete or outdated."""
    base = folder / _store_name(files, key)
    try:
        with base.with_suffix(".npz").open("rb") as file, np.load(file) as index:
            return ImageCache(base.with_suffix(".pixels"), index["shapes"])
    except _DAMAGED_INDEX:
        return None


def _build_in_memory(images: Iterator[np.ndarray]) -> ImageCache:
    handle = os.memfd_create("imago-images")
    try:
        with os.fdopen(handle, "wb", closefd=False) as file:
            shapes = _write(images, file)
    except BaseException:
        os.close(handle)
        raise
    return ImageCache(Path(f"/proc/{os.getpid()}/fd/{handle}"), shapes, handle)


def _build_on_disk(
    images: Iterator[np.ndarray], files: LabeledFiles, folder: Path, key: Mapping[str, Any]
) -> ImageCache:
    """Write the pixels, then the index, both atomically, while other processes wait."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _store_name(files, key)
    with _lock(folder / f"{name}.lock"):
        if (store := open_cache(files, folder, key)) is not None:
            return store
        _delete_outdated(files, folder, key)
        remove_partial_files(folder, name)
        pixels = folder / f"{name}.pixels"
        with atomic_write(pixels, "wb") as file:
            shapes = _write(images, file)
        names, text = (np.frombuffer(encode_names(part), np.uint8) for part in (files.names, [_key_text(key)]))
        with atomic_write(folder / f"{name}.npz", "wb") as file:
            np.savez(file, names=names, num_bytes=files.num_bytes, mtime_ns=files.mtime_ns, shapes=shapes, key=text)
        log.info("kept %s decoded images in %s", f"{len(files):,}", folder)
        return ImageCache(pixels, shapes)


def _decode(
    files: LabeledFiles,
    class_names: Sequence[str],
    prepare: Callable[[np.ndarray], np.ndarray],
    num_threads: int,
) -> Iterator[np.ndarray]:
    """Decode in threads, in order and only a little ahead."""
    step = num_threads * _READ_AHEAD
    disable = None if os.environ.get("LOCAL_RANK", "0") == "0" else True
    progress = tqdm(total=len(files), desc="decoding", unit="image", leave=False, disable=disable)
    with progress, ThreadPoolExecutor(num_threads) as threads:
        for start in range(0, len(files), step):
            indices = range(start, min(start + step, len(files)))
            for image in threads.map(lambda index: prepare(files.read(index, class_names)), indices):
                yield image
                progress.update()


def _write(images: Iterator[np.ndarray], file: IO[bytes]) -> np.ndarray:
    """Write the pixels and return the shapes, int64 (N, 2)."""
    shapes = []
    for image in images:
        file.write(np.ascontiguousarray(image).data)
        shapes.append(image.shape[:2])
    return np.array(shapes, np.int64).reshape(-1, 2)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Run the block in one process at a time; the system releases the lock of a process that dies."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is decoding these images: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _delete_outdated(files: LabeledFiles, folder: Path, key: Mapping[str, Any]) -> None:
    """Delete the images of files that have changed since; those of other splits and settings stay."""
    current = dict(zip(files.names, zip(files.num_bytes.tolist(), files.mtime_ns.tolist(), strict=True), strict=True))
    for index_file in folder.glob(f"{_root_name(files)}-*.npz"):
        try:
            with index_file.open("rb") as file, np.load(file) as index:
                names, (old_key,) = (decode_names(index[column].tobytes()) for column in ("names", "key"))
                kept = zip(index["num_bytes"].tolist(), index["mtime_ns"].tolist(), strict=True)
                is_changed = [current[name] != old for name, old in zip(names, kept, strict=True) if name in current]
        except _DAMAGED_INDEX:
            log.info("decoding again: %s is damaged", index_file)
        else:
            if is_changed and not any(is_changed) and old_key != _key_text(key):
                log.info("decoding: the cached images were made with other settings (%s)", old_key)
            if not any(is_changed):
                continue
            log.info("decoding again: %s images have changed since they were cached", f"{sum(is_changed):,}")
        for suffix in (".npz", ".pixels"):  # the index first: without it, no process opens the pixels
            index_file.with_suffix(suffix).unlink(missing_ok=True)


def _store_name(files: LabeledFiles, key: Mapping[str, Any]) -> str:
    """Return a file name that depends on everything that determines the content of a store."""
    digest = hashlib.sha256(_key_text(key).encode())
    for part in (encode_names(files.names), files.num_bytes.tobytes(), files.mtime_ns.tobytes()):
        digest.update(part)
    return f"{_root_name(files)}-{digest.hexdigest()[:16]}"


def _root_name(files: LabeledFiles) -> str:
    return hashlib.sha256(os.fsencode(files.root.absolute())).hexdigest()[:12]


def _key_text(key: Mapping[str, Any]) -> str:
    return json.dumps({"schema": _SCHEMA, **key}, sort_keys=True)


def _format_bytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
