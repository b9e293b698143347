"""Datasets in litdata's chunk format, written here byte by byte, and an S3 server on this machine that can fail."""

import json
import logging
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_images import photo
from PIL import Image

from imago.data import chunks
from imago.data.chunks import ChunkFiles, LabeledChunks, read_set

KEYS = ("image", "label")


def png(pixels: np.ndarray) -> bytes:
    """Return an image, uint8 (H, W, 3), as a PNG file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def numpy_value(pixels: np.ndarray) -> bytes:
    """Return an array as litdata's serializer "numpy" stores it."""
    return struct.pack(f"<{2 + pixels.ndim}I", 4, pixels.ndim, *pixels.shape) + pixels.tobytes()


def pil_value(image: Image.Image) -> bytes:
    """Return an image as litdata's serializer "pil" stores it."""
    return struct.pack("<3I", *image.size, len(image.mode)) + image.mode.encode() + image.tobytes()


def chunk_bytes(samples: Iterable[tuple[bytes, int]]) -> bytes:
    """Return the content of a chunk: number of samples, offsets, and for each sample the sizes of its values."""
    items = [struct.pack("<2I", len(image), 8) + image + struct.pack("<q", label) for image, label in samples]
    start = 4 * (len(items) + 2)
    offsets = np.cumsum([start, *map(len, items)]).astype("<u4")
    return struct.pack("<I", len(items)) + offsets.tobytes() + b"".join(items)


def write_set(
    directory: Path,
    samples: Sequence[tuple[bytes, int]],
    per_chunk: int = 6,
    kind: str = "bytes",
    sidecar: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a dataset of stored images and labels; return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    chunks = []
    for number, start in enumerate(range(0, len(samples), per_chunk)):
        part = samples[start : start + per_chunk]
        content = chunk_bytes(part)
        (directory / f"chunk-0-{number}.bin").write_bytes(content)
        name = f"chunk-0-{number}.bin"
        chunks.append({"filename": name, "chunk_bytes": len(content), "chunk_size": len(part), "dim": None})
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "builtins.dict", "context": json.dumps(KEYS), "children_spec": [leaf, leaf]}
    settings = {"compression": None, "encryption": None, "data_format": [kind, "int"], "item_loader": "PyTreeLoader"}
    settings |= {"data_spec": json.dumps([1, spec])} | config
    (directory / "index.json").write_text(json.dumps({"chunks": chunks, "config": settings, "updated_at": "1"}))
    if sidecar is not None:
        (directory / "imago.json").write_text(json.dumps(sidecar))
    return directory


def drawn_samples(num_samples: int, num_classes: int = 3, is_sorted: bool = False) -> list[tuple[bytes, int]]:
    """Return PNG images, no two alike, whose labels take turns, or come class by class."""
    labels = [i * num_classes // num_samples if is_sorted else i % num_classes for i in range(num_samples)]
    return [(png(photo(index, 12)), label) for index, label in enumerate(labels)]


@dataclass
class Store:
    """An S3 server: its address, what was asked for, and how it fails."""

    url: str = ""
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # method and name of the file
    failing: dict[str, str] = field(default_factory=dict)  # name of a file -> half, slow or error
    num_failures: int = 10**6  # that are left
    slow_s: float = 1.0


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_store() -> Iterator[Store]:
    """Run moto's server until the end of the block, with the faults of `Store` in front of it.

    The environment of this process names it.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    store = Store()
    moto = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        name = environ["PATH_INFO"].rpartition("/")[2]
        store.requests[environ["REQUEST_METHOD"], name] += 1
        fault = store.failing.get(name) if environ["REQUEST_METHOD"] == "GET" else None
        if fault is None or store.num_failures <= 0:
            return moto(environ, start_response)
        store.num_failures -= 1
        if fault == "slow":
            time.sleep(store.slow_s)
        if fault == "error":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = b"".join(moto(environ, start_response))
        return [body[: len(body) // 2]] if fault == "half" else [body]

    server = make_server("127.0.0.1", 0, app, threaded=True)
    store.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": store.url}.items():
            patch.setenv(name, value)
        chunks._downloader.cache_clear()
        try:
            yield store
        finally:
            chunks._downloader.cache_clear()
            server.shutdown()
            thread.join()


def upload(store: Store, directory: Path, bucket: str = "photos", prefix: str = "set") -> str:
    """Make `prefix` of the store a copy of a directory; return its s3:// address.

    What another test left there is deleted: all the stores of a process share one memory.
    """
    import boto3

    client = boto3.client("s3", endpoint_url=store.url)
    if bucket not in [entry["Name"] for entry in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)
    for entry in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", []):
        client.delete_object(Bucket=bucket, Key=entry["Key"])
    for file in directory.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(directory).as_posix()}")
    return f"s3://{bucket}/{prefix}"


MAX_PIXELS = 10_000


def opened(
    root: str | Path, labels: list[int], cache_dir: Path = Path("unused"), max_bytes: int = 10**9
) -> LabeledChunks:
    """Open a dataset without splits."""
    files = ChunkFiles(str(root), cache_dir, max_bytes)
    parts, _, digest = read_set(files, "")
    files = replace(files, chunks=tuple(parts), folder=digest)
    return LabeledChunks(files, np.arange(len(labels)), np.array(labels), MAX_PIXELS)
