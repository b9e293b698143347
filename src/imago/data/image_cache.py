"""Cache decoded images in memory or on disk, so that only the first epoch decodes them."""

import hashlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from imago.augment.resized_crop import limited_sides
from imago.data.dataset import LabeledFiles
from imago.data.examine import DAMAGED_NPZ, map_in_threads
from imago.errors import ConfigError, DataError
from imago.files import atomic_write, encode_names, remove_partial_files
from imago.images import FORMATS
from imago.resources import available_memory_bytes, free_disk_bytes
from imago.system import lock
from imago.text import counted
from imago.threads import one_intraop_thread

log = logging.getLogger(__name__)

CACHE_MODES = ("none", "ram", "disk", "auto")
_SCHEMA_VERSION = 3  # increased when the content of the files changes
_MAX_HEADERS = 500  # images whose size is read for an estimate: a few milliseconds, and an error of a few percent
_HOW_TO_SHRINK = "a lower data.decoded_px or preprocess.size makes them smaller"


def choose_cache(
    mode: str, num_bytes: int, directory: Path, num_processes: int, existing_bytes: int = 0
) -> tuple[str, str]:
    """Return where decoded images are kept, "none", "ram" or "disk", and the reason in words.

    Args:
        mode: "ram", "disk" or "auto". "auto" is "disk" if all are there already, else "ram" if they fit in half of the
            available memory, else "disk" if they fit in half of its free space, else "none".
        num_bytes: size of all decoded images.
        directory: directory of the cache on disk, which need not exist yet.
        num_processes: processes that each need a copy in memory; a copy on disk is shared.
        existing_bytes: size of those images that are in `directory` already.

    Raises:
        ConfigError: if the memory or the disk is too small for a typed mode.
    """
    needed = {"ram": num_bytes * num_processes, "disk": num_bytes - existing_bytes}
    has_memory_files = hasattr(os, "memfd_create")
    available = {"ram": available_memory_bytes() if has_memory_files else 0, "disk": free_disk_bytes(directory)}
    if mode != "auto":
        if mode == "ram" and not has_memory_files:
            raise ConfigError("data.cache=ram: only Linux has files in memory; data.cache=disk keeps images on disk.")
        if needed[mode] > available[mode]:
            name, remedy = ("memory", "disk keeps them on disk") if mode == "ram" else (directory, "none disables it")
            raise ConfigError(
                f"data.cache={mode}: the decoded images need {_format_bytes(needed[mode])}, and {name} has "
                f"{_format_bytes(available[mode])} available; data.cache={remedy}, {_HOW_TO_SHRINK}."
            )
        return mode, f"{_format_bytes(num_bytes)}, as typed"
    if needed["disk"] <= 0:
        return "disk", f"{_format_bytes(num_bytes)}, kept in {directory} by an earlier run"
    for kind in ("ram", "disk"):
        if needed[kind] * 2 <= available[kind]:
            return kind, f"{_format_bytes(needed[kind])} of {_format_bytes(available[kind])} available"
    memory, disk = (_format_bytes(available[kind]) for kind in ("ram", "disk"))
    fault = f"{_format_bytes(needed['ram'])} are over half of the {memory} of memory and {disk} of disk"
    return "none", f"{fault}; {_HOW_TO_SHRINK}"


def estimate_bytes(files: LabeledFiles, decoded_px: int | None) -> int:
    """Estimate the bytes of all images, decoded and scaled down by `limit_shorter_side`, from the headers of some."""
    num_pixels = []
    for index in np.unique(np.linspace(0, len(files) - 1, _MAX_HEADERS).astype(np.int64)):
        try:
            with Image.open(files.root / files.names[index], formats=FORMATS) as image:
                num_pixels.append(np.prod(limited_sides(image.height, image.width, decoded_px)))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # reported when it is decoded
    return round(np.mean(num_pixels) * 3 * len(files)) if num_pixels else 0


class ImageCache:
    """Decoded images of any sizes, one after another in one file that every process maps into its memory.

    Forked and spawned processes share the bytes: only the file name is pickled. In memory the file is an anonymous one,
    so that the size of /dev/shm, which is small in containers, is no limit.

    `shapes` has height and width of each image, int64 (N, 2); a file of another size raises a ValueError.
    """

    def __init__(self, pixels: Path, shapes: np.ndarray) -> None:
        self.pixels = pixels
        self.shapes = shapes
        self._offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1) * 3)])
        if pixels.stat().st_size != self._offsets[-1]:
            raise ValueError(f"{pixels} has {pixels.stat().st_size:,} bytes instead of {self._offsets[-1]:,}")
        # As a plain array: each slice of a memmap is an object of its own class, which takes ten times longer.
        self._bytes = np.asarray(np.memmap(pixels, np.uint8, "r", shape=(int(self._offsets[-1]),)))
        self._handle = os.open(pixels, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def __reduce__(self) -> tuple:
        return ImageCache, (self.pixels, self.shapes)

    def read(self, index: int) -> np.ndarray:
        """Return one image, uint8 (H, W, 3), read-only and without a copy.

        Raises:
            DataError: the file was truncated after it was opened; reading it would end the process with SIGBUS.
        """
        if (num_bytes := os.fstat(self._handle).st_size) != self._offsets[-1]:
            raise DataError(
                f"{self.pixels} was truncated to {num_bytes:,} bytes while it was in use; start the run again, which "
                "decodes the images again."
            )
        height, width = self.shapes[index]
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].reshape(height, width, 3)


def build_cache(
    files: LabeledFiles, read: Callable[[int], np.ndarray], kind: str, directory: Path, preparation: str
) -> ImageCache:
    """Decode every image once; on disk, reuse what an earlier run or another process has decoded.

    Args:
        files: the N images; the cache has the same order.
        read: returns the image at an index as it is cached, uint8 (H, W, 3).
        kind: "ram" or "disk".
        directory: directory of the cache on disk; created if necessary.
        preparation: what `read` does after decoding: images with another preparation are not reused.

    Raises:
        DataError: naming the image that cannot be read and its class, or the disk that is full.
    """
    images = map_in_threads(read, range(len(files)), "decoding")
    try:
        with one_intraop_thread():
            return _build_in_memory(images) if kind == "ram" else _build_on_disk(images, files, directory, preparation)
    except OSError as error:
        raise DataError(
            f"data.cache={kind}: {directory if kind == 'disk' else 'the memory'} cannot be written "
            f"({error.strerror}); data.cache=none decodes the images in every epoch."
        ) from error


def open_cache(files: LabeledFiles, directory: Path, preparation: str) -> ImageCache | None:
    """Open the images that `build_cache` kept on disk; return None if they are missing, changed or outdated."""
    index_file, pixels = _cache_files(files, directory, preparation)
    with suppress(*DAMAGED_NPZ), index_file.open("rb") as file, np.load(file) as index:
        is_current = np.array_equal(index["states"], [files.num_bytes, files.mtime_ns])
        if is_current and index["pixels_mtime_ns"] == pixels.stat().st_mtime_ns:
            return ImageCache(pixels, index["shapes"])
    return None


def _build_in_memory(images: Iterator[np.ndarray]) -> ImageCache:
    file = os.fdopen(os.memfd_create("imago-images"), "wb")
    try:
        shapes = _write(images, file)
        file.flush()
        cache = ImageCache(Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"), shapes)
    except BaseException:
        file.close()
        raise
    weakref.finalize(cache, file.close)  # the anonymous file exists until then
    return cache


def _build_on_disk(images: Iterator[np.ndarray], files: LabeledFiles, directory: Path, preparation: str) -> ImageCache:
    """Write the pixels, then the index, both atomically, while other processes wait."""
    directory.mkdir(parents=True, exist_ok=True)
    index_file, pixels = _cache_files(files, directory, preparation)
    with index_file.with_suffix(".lock").open("ab") as file_to_lock:
        lock(file_to_lock)  # the system releases the lock of a process that dies
        if (cache := open_cache(files, directory, preparation)) is not None:
            return cache
        index_file.unlink(missing_ok=True)  # without it, no process opens the pixels
        remove_partial_files(directory, index_file.stem)
        with atomic_write(pixels, "wb") as file:
            shapes = _write(images, file)
        with atomic_write(index_file, "wb") as file:
            states, written_ns = [files.num_bytes, files.mtime_ns], pixels.stat().st_mtime_ns
            np.savez(file, states=states, shapes=shapes, pixels_mtime_ns=written_ns)
        log.info("cached %s in %s", counted(len(files), "decoded image"), directory)
        return ImageCache(pixels, shapes)


def _write(images: Iterator[np.ndarray], file: IO[bytes]) -> np.ndarray:
    """Write the pixels and return the shapes, int64 (N, 2)."""
    shapes = []
    for image in images:
        file.write(np.ascontiguousarray(image).data)
        shapes.append(image.shape[:2])
    return np.array(shapes, np.int64).reshape(-1, 2)


def _cache_files(files: LabeledFiles, directory: Path, preparation: str) -> tuple[Path, Path]:
    """Return the file of shapes and states and the file of pixels, which are replaced when image files change."""
    content = encode_names([str(_SCHEMA_VERSION), str(files.root.absolute()), preparation, *files.names])
    name = hashlib.sha256(content).hexdigest()[:16]
    return directory / f"{name}.npz", directory / f"{name}.pixels"


def _format_bytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
