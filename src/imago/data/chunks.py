"""Read a dataset in litdata's chunk format, from a directory or S3; nothing is ever unpickled."""

import functools
import io
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from imago.data.dataset import Samples
from imago.errors import ConfigError, DataError, LargeImageError
from imago.files import atomic_write, remove_partial_files, sha256_of
from imago.images import read_image, to_pixels
from imago.system import lock

S3 = "s3://"
SIDECAR = "imago.json"  # beside index.json: class_names, labels of all samples, sha256 of each chunk; all optional
# Of each request. A transfer is tried five times, so a silent store ends a run within four minutes; our own choice.
LIMITS: Any = {"connect_timeout": 5, "read_timeout": 10, "retries": {"total_max_attempts": 4, "mode": "standard"}}
_ENCODED = ("bytes", "jpeg", "image", "file")  # serializers of litdata that store the bytes of an image file
_PIL_MODES = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16")  # litdata drops the palette of the others
_WANTED = "{'image': bytes, litdata.Image, PIL or uint8 array, 'label': int}, neither compressed nor encrypted"
_COPY_AGAIN = "copy the dataset again, or write it anew"


class Chunk(NamedTuple):
    """A file of samples, as index.json describes it."""

    name: str  # relative to the root
    num_bytes: int
    num_samples: int
    sha256: str  # "" if it is unknown
    kinds: dict[str, str]  # serializer of each value of a sample, by name, in their order


@dataclass(frozen=True)
class ChunkFiles:
    """The files of a chunked dataset; all methods raise a DataError that names a file that cannot be read."""

    root: str  # a directory, or s3://BUCKET/PATH
    cache_dir: Path  # of downloaded chunks, with a folder per dataset; several processes may share it
    max_bytes: int  # of the chunks in `cache_dir`; those that were not used for the longest time are deleted first
    folder: str = ""  # of this dataset in `cache_dir`: SHA-256 of what is known of it
    chunks: tuple[Chunk, ...] = ()

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Position of the first sample of each chunk among all, and the number of samples: int64 (C + 1,)."""
        return np.cumsum([0, *(chunk.num_samples for chunk in self.chunks)])

    def chunk_of(self, positions: Any) -> Any:
        """Return the index of the chunk of each sample, int64."""
        return self.starts.searchsorted(positions, "right") - 1

    def name(self, position: int) -> str:
        """Return the name of a sample, e.g. "chunk-0-3/00042"."""
        index = self.chunk_of(position)
        return f"{self.chunks[index].name.removesuffix('.bin')}/{position - self.starts[index]:05d}"

    def read(self, name: str, is_optional: bool = False) -> bytes:
        """Return the content of a small file; b"" if it is optional and there is none."""
        content, path = io.BytesIO(), Path(self.root, name)
        if self.root.startswith(S3):
            self._download(name, content, is_optional)
            return content.getvalue()
        try:
            return b"" if is_optional and not path.exists() else path.read_bytes()
        except OSError as error:
            is_folder = isinstance(error, FileNotFoundError) and Path(self.root).is_dir()
            remedy = "for folders of images type data=image_folder, or write chunks with tools/write_litdata.py"
            fault = f"cannot be read: {error.strerror}; {remedy if is_folder else 'check data.root'}"
            raise DataError(f"{path} {fault}.") from error

    def fetch(self, chunk: Chunk) -> str | Path:
        """Return the path of a chunk, which is downloaded unless it is there; others that need it wait for it."""
        if not self.root.startswith(S3):
            return f"{self.root}/{chunk.name}"
        path = self.cache_dir / self.folder / chunk.name.replace("/", "-")
        try:
            with suppress(FileNotFoundError):
                os.utime(path)  # marks it as used
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("ab") as file_to_lock:
                lock(file_to_lock)
                if not path.exists():
                    remove_partial_files(path.parent, f"{path.name}.")
                    self._make_room(chunk.num_bytes)
                    with atomic_write(path, "wb") as file:
                        self._download(chunk.name, file)
                        file.flush()
                        num_bytes = os.fstat(file.fileno()).st_size  # not `tell`: parts are written in any order
                        if chunk.sha256 not in ("", sha256_of(Path(file.name))) or num_bytes != chunk.num_bytes:
                            fault = f"{num_bytes:,} bytes, not the size or SHA-256 in index.json or {SIDECAR}"
                            raise DataError(f"{self.root}/{chunk.name} has {fault}; {_COPY_AGAIN}.")
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}; free some space, lower data.cache_gb, or type another data.cache_dir."
            ) from error
        return path

    def _make_room(self, num_bytes: int) -> None:
        kept = []
        for path in self.cache_dir.glob(f"{'[0-9a-f]' * 64}/*.bin"):  # the folders of this class, and no others
            with suppress(FileNotFoundError):  # another process deletes too
                kept.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = num_bytes + sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total > self.max_bytes:
                with suppress(FileNotFoundError, PermissionError):  # Windows keeps open files
                    path.unlink()
                total -= size

    def _download(self, name: str, file: IO[bytes], is_optional: bool = False) -> None:
        downloader, errors = _downloader(self.root)
        try:
            downloader.download_fileobj(f"{self.root}/{name}", file)
        except errors as error:
            code = getattr(error, "response", {}).get("Error", {}).get("Code")
            # 403: of a missing file, without the permission to list the bucket
            if not is_optional or code not in ("404", "NoSuchKey", "403"):
                cause = " ".join(str(getattr(error, "last_exception", error)).split()).rstrip(".")
                access = ", the credentials (AWS_ACCESS_KEY_ID ..., or AWS_PROFILE) and the connection"
                remedy = f"check data.root{'' if code in ('404', 'NoSuchKey', 'NoSuchBucket') else access}"
                raise DataError(f"{self.root}/{name} cannot be downloaded: {cause}; {remedy}.") from error


@functools.cache
def _downloader(root: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """Return litdata's downloader, which connects anew in each process, and the exceptions that it raises."""
    try:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from litdata.streaming.downloader import get_downloader
        from s3transfer.exceptions import RetriesExceededError
    except ImportError as error:
        remedy = "an extra of this project: pip install -e '.[litdata]'"
        raise ConfigError(f"data.root={root} needs the package litdata, {remedy}.") from error
    errors = (BotoCoreError, ClientError, RetriesExceededError, ValueError)  # ValueError: an endpoint without a scheme
    return get_downloader(root, "", [], {"config": Config(**LIMITS)}), errors


def read_set(files: ChunkFiles, prefix: str) -> tuple[list[Chunk], dict[str, Any], str]:
    """Read index.json and `SIDECAR` in a folder of the root ("" or "train/"): chunks, `SIDECAR`, SHA-256 of both files.

    A DataError says what is missing, damaged, or of a kind that cannot be read.
    """
    content, further = files.read(f"{prefix}index.json"), files.read(prefix + SIDECAR, is_optional=True)
    name, chunks = f"{files.root}/{prefix}index.json", []
    try:
        index, sidecar = json.loads(content), json.loads(further or b"{}")
        config, hashes = index["config"], sidecar.get("sha256", {})
        keys = json.loads(json.loads(config["data_spec"])[1]["context"])
        kinds = {key: kind.partition(":")[0] for key, kind in zip(keys, config["data_format"], strict=True)}
        for entry in index["chunks"]:
            file, size = entry["filename"], entry["chunk_size"]
            if not re.fullmatch(r"[\w.-]+\.bin", file) or size < 1:
                raise ValueError(f"a chunk {file!r} of {size} samples")
            chunks.append(Chunk(prefix + file, int(entry["chunk_bytes"]), int(size), hashes.get(file, ""), kinds))
        if not chunks:
            raise ValueError("no chunks")
        sidecar["labels"] = np.array(sidecar.get("labels", []), np.int64)
        sidecar["class_names"] = tuple(map(str, sidecar.get("class_names", ())))
        if len(sidecar["labels"]) not in (0, sum(chunk.num_samples for chunk in chunks)):
            raise ValueError(f"{SIDECAR} has {len(sidecar['labels'])} labels")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        fault = f"is damaged, or no index of litdata ({type(error).__name__}: {error})"
        raise DataError(f"{name} {fault}; {_COPY_AGAIN}.") from error
    faults = [f"config.{key} is {config[key]}" for key in ("compression", "encryption", "format") if config.get(key)]
    faults += [f"{key!r} is stored by pickle, which executes code" for key, kind in kinds.items() if kind == "pickle"]
    if kinds.get("image") not in (*_ENCODED, "pil", "numpy") or kinds.get("label") != "int":
        faults.append(f"the samples are {kinds}")
    if faults:
        raise DataError(f"{name}: {faults[0]}; wanted {_WANTED}, as tools/write_litdata.py writes it.")
    return chunks, sidecar, sha256(content + further).hexdigest()


@dataclass(frozen=True)
class LabeledChunks(Samples):
    """Samples in chunks, which are read on access."""

    files: ChunkFiles
    positions: np.ndarray  # of the samples among those of all chunks, int64 (N,)
    labels: np.ndarray  # int64 (N,)
    max_pixels: int

    @property
    def content_digest(self) -> str:
        """A hash that stands for the content of all chunks; "" if their SHA-256 is not listed."""
        return self.files.folder if all(chunk.sha256 for chunk in self.files.chunks) else ""

    @functools.cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The name of each sample, built when they are needed: those of a million take 80 MB."""
        return tuple(map(self.files.name, self.positions))

    def replaced(self, names: Iterator[str], columns: Mapping[str, np.ndarray]) -> Self:
        return replace(self, **columns)  # type: ignore[arg-type]  # the names follow from the positions

    def stored(self, index: int, is_second_try: bool = False) -> tuple[bytes, int, str]:
        """Return the image as it is stored, the label and the serializer; a DataError names a chunk that is damaged."""
        number = self.files.chunk_of(position := int(self.positions[index]))
        chunk, first = self.files.chunks[number], int(self.files.starts[number])
        try:
            path = self.files.fetch(chunk)
            with open(path, "rb", 0) as file:  # noqa: PTH123  # Path.open takes as long as reading a small image
                num_bytes, num_samples = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(4), "little")
                file.seek(4 * (1 + position - first))
                start, end = struct.unpack("<2I", file.read(8).ljust(8, b"\0"))
                file.seek(start)
                data = file.read(max(0, min(end, num_bytes) - start))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self.files.root.startswith(S3):
                return self.stored(index)  # another process has deleted it just now, for a chunk of its own
            raise DataError(f"{error.filename} cannot be read: {error.strerror}; {_COPY_AGAIN}.") from error
        if num_bytes != chunk.num_bytes and self.files.root.startswith(S3) and not is_second_try:
            Path(path).unlink(missing_ok=True)  # damaged in the cache: downloads are compared with the index
            return self.stored(index, is_second_try=True)
        header = 4 * len(chunk.kinds)
        sizes = struct.unpack(f"<{len(chunk.kinds)}I", data[:header].ljust(header, b"\0"))
        ends = [*accumulate(sizes, initial=header)]
        if (num_bytes, num_samples) != (chunk.num_bytes, chunk.num_samples) or ends[-1] != len(data):
            fault = "is damaged, of another version than index.json, or written with pyarrow (use litdata.Image)"
            raise DataError(f"{self.files.root}/{chunk.name} of {num_bytes:,} bytes {fault}; {_COPY_AGAIN}.")
        image, label = (data[ends[i] : ends[i + 1]] for i in map([*chunk.kinds].index, ("image", "label")))
        return image, int.from_bytes(label, "little", signed=True), chunk.kinds["image"]

    def read(self, index: int, class_names: Sequence[str] = ()) -> np.ndarray:
        data, label, kind = self.stored(index)
        try:
            if label != self.labels[index]:
                raise ValueError(f"has the label {label}, and {SIDECAR} says {self.labels[index]}")
            return _decode(data, kind, self.max_pixels)
        except (DataError, ValueError, struct.error) as error:
            reason = str(error).removeprefix("the file ").replace(" max_pixels", " data.max_pixels").rstrip(".")
            where = f"image {self.files.name(self.positions[index])} of {self.files.root}"
            raise DataError(f"{where}: {reason}; {_COPY_AGAIN}.") from error


def _decode(data: bytes, kind: str, max_pixels: int) -> np.ndarray:
    """Decode an image as the serializer `kind` of litdata stores it: uint8 (H, W, 3)."""
    if kind in _ENCODED:
        return read_image(data, max_pixels)
    if kind == "pil":
        width, height, length = struct.unpack_from("<3I", data)
        mode = data[12 : 12 + length].decode()
        if mode not in _PIL_MODES or width * height > max_pixels:
            raise LargeImageError(f"a PIL image of mode {mode}, {width}x{height}, wanted one of {_PIL_MODES}")
        return to_pixels(Image.frombytes(mode, (width, height), data[12 + length :]), "it")
    dtype, num_dims = struct.unpack_from("<2I", data)  # uint8 is number 4
    shape = struct.unpack_from(f"<{min(num_dims, 4)}I", data, 8)
    if dtype != 4 or num_dims not in (2, 3) or shape[2:] not in ((), (1,), (3,)) or 0 in shape:
        raise ValueError(f"an array {shape} of dtype number {dtype}, not uint8 (H, W, 3) or (H, W)")
    pixels = np.frombuffer(data, np.uint8, offset=8 + 4 * num_dims).reshape(*shape[:2], -1)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*shape[:2], 3)))
