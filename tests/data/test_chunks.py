"""litdata's chunk format: what is read, what is refused in one line, and downloads from an S3 store that fails."""

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunked_sets import Store, chunk_bytes, drawn_samples, numpy_value, pil_value, png, s3_store, upload, write_set
from drawn_images import photo
from PIL import Image

from imago.data import chunks
from imago.data.chunks import ChunkFiles, LabeledChunks, read_set
from imago.data.dataset import concatenate
from imago.errors import DataError

MAX_PIXELS = 10_000


def opened(
    root: str | Path, labels: list[int], cache_dir: Path = Path("unused"), max_bytes: int = 10**9
) -> LabeledChunks:
    """Open a dataset without splits."""
    files = ChunkFiles(str(root), cache_dir, max_bytes)
    parts, _, digest = read_set(files, "")
    files = replace(files, chunks=tuple(parts), folder=digest)
    return LabeledChunks(files, np.arange(len(labels)), np.array(labels), MAX_PIXELS)


def one(tmp_path: Path, value: bytes, kind: str) -> LabeledChunks:
    """Open a dataset of one stored image."""
    return opened(write_set(tmp_path, [(value, 0)], kind=kind), [0])


# What is read


@pytest.mark.parametrize("kind", ["bytes", "jpeg", "image:jpg", "file:png"])
def test_image_files_are_read_by_position_whatever_serializer_stored_them(tmp_path: Path, kind: str):
    samples = drawn_samples(20)
    found = opened(write_set(tmp_path, samples, per_chunk=6, kind=kind), [label for _, label in samples])
    for index in (0, 5, 6, 19):
        np.testing.assert_array_equal(found.read(index), photo(index, 12))
    assert [found.names[index] for index in (0, 5, 6, 19)] == [
        *("chunk-0-0/00000", "chunk-0-0/00005", "chunk-0-1/00000", "chunk-0-3/00001")
    ]


def test_taken_and_joined_samples_keep_their_images_labels_and_names(tmp_path: Path):
    samples = drawn_samples(20)
    found = opened(write_set(tmp_path, samples), [label for _, label in samples])
    part = concatenate([found.take(np.array([7, 3])), found.take(np.array([19]))])
    assert part.labels.tolist() == [1, 0, 1]
    assert part.names == ("chunk-0-1/00001", "chunk-0-0/00003", "chunk-0-3/00001")
    np.testing.assert_array_equal(part.read(2), photo(19, 12))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_pil_image_is_read_as_a_file_of_it_would_be(tmp_path: Path, mode: str):
    image = Image.fromarray(photo(1, 9)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(tmp_path / "same.tiff")
    expected = chunks.read_image(tmp_path / "same.tiff")
    np.testing.assert_array_equal(one(tmp_path / "set", pil_value(image), "pil").read(0), expected)


def test_arrays_of_three_or_one_channel_are_read(tmp_path: Path):
    pixels = photo(3, 9)
    np.testing.assert_array_equal(one(tmp_path / "a", numpy_value(pixels), "numpy").read(0), pixels)
    for number, gray in enumerate((pixels[..., 0], pixels[..., :1])):
        found = one(tmp_path / f"gray{number}", numpy_value(gray), "numpy").read(0)
        np.testing.assert_array_equal(found, np.repeat(pixels[..., :1], 3, axis=2))


# What is refused


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (png(photo(0, 12))[:300], "bytes", "is damaged: it is truncated"),
        (b"", "bytes", "is empty"),
        (b"PK\3\4 no image at all", "jpeg", "is not an image"),
        (png(photo(0, 101)), "bytes", "is 101x101, more than 10,000 pixels; scale it down, or raise data.max_pixels"),
        (pil_value(Image.new("RGB", (2, 2)))[:-1], "pil", "not enough image data"),
        (pil_value(Image.new("P", (2, 2))), "pil", "mode P"),
        (struct.pack("<3I", 2**31, 2**31, 3) + b"RGB", "pil", "mode RGB, 2147483648x2147483648"),
        (b"ab", "pil", "buffer"),
        (numpy_value(photo(0, 4))[:-1], "numpy", "cannot reshape"),
        (numpy_value(np.zeros((3, 4, 4), np.uint8)), "numpy", r"array \(3, 4, 4\)"),
        (struct.pack("<2I", 4, 2**31) + bytes(64), "numpy", "an array"),
        (struct.pack("<5I", 12, 3, 1, 1, 3) + bytes(12), "numpy", "dtype number 12"),
        (struct.pack("<4I", 4, 2, 0, 4), "numpy", r"array \(0, 4\)"),
    ],
)
def test_an_image_that_cannot_be_read_is_one_line_that_names_it(tmp_path: Path, value: bytes, kind: str, message: str):
    with pytest.raises(DataError, match=rf"^image chunk-0-0/00000 of \S+: .*{message}") as caught:
        one(tmp_path, value, kind).read(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_format": ["bytes", "pickle"]}, "'label' is stored by pickle, which executes code"),
        ({"data_format": ["pickle", "int"]}, "'image' is stored by pickle, which executes code"),
        ({"data_format": ["tensor", "int"]}, "the samples are {'image': 'tensor', 'label': 'int'}"),
        ({"data_format": ["bytes", "float"]}, "the samples are"),
        ({"compression": "zstd"}, "config.compression is zstd"),
        ({"encryption": {"algorithm": "fernet"}}, "config.encryption is"),
        ({"format": "mds"}, "config.format is mds"),
        ({"data_spec": None}, r"is damaged, or no index of litdata \(TypeError"),
        ({"data_spec": "[1, {}]"}, r"\(KeyError"),
        ({"data_format": ["bytes"]}, r"\(ValueError"),
    ],
)
def test_a_set_of_another_kind_is_refused_before_a_chunk_is_opened(tmp_path: Path, change: dict, message: str):
    write_set(tmp_path, drawn_samples(3), **change)
    for chunk in tmp_path.glob("*.bin"):
        chunk.unlink()
    with pytest.raises(DataError, match=f"^{tmp_path}/index.json.*{message}") as caught:
        opened(tmp_path, [0])
    assert "\n" not in str(caught.value)


def edited_index(tmp_path: Path, edit: Callable[[Any], Any]) -> Path:
    write_set(tmp_path, drawn_samples(8), sidecar={})
    index = json.loads((tmp_path / "index.json").read_text())
    edit(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize("name", ["../../secret.bin", "/etc/passwd", "a/b.bin", "chunk-0-0.zstd"])
def test_names_that_leave_the_directory_are_refused(tmp_path: Path, name: str):
    with pytest.raises(DataError, match="a chunk '.*' of 6 samples"):
        opened(edited_index(tmp_path, lambda index: index["chunks"][0].update(filename=name)), [0])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"chunks": 3, "config": {}}', b"\xff\xfe"])
def test_a_damaged_index_is_one_line(tmp_path: Path, content: bytes):
    write_set(tmp_path, drawn_samples(3))
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index.json is damaged, or no index of litdata \(\w+: .*\); copy the dataset"):
        opened(tmp_path, [0])


def test_a_missing_index_and_a_missing_chunk_are_named(tmp_path: Path):
    with pytest.raises(
        DataError, match="nowhere/index.json cannot be read: No such file or directory; check data.root"
    ):
        opened(tmp_path / "nowhere", [0])
    found = opened(write_set(tmp_path, drawn_samples(3)), [0, 1, 2])
    (tmp_path / "chunk-0-0.bin").unlink()
    with pytest.raises(DataError, match="chunk-0-0.bin cannot be read: No such file"):
        found.read(0)


def cut(content: bytes) -> bytes:
    return content[:-1]


def appended(content: bytes) -> bytes:
    return content + b"x"


def other_version(content: bytes) -> bytes:
    """Return a chunk of the same size with one sample fewer."""
    samples = drawn_samples(5)
    shorter = chunk_bytes(samples)
    image, label = samples[-1]
    return chunk_bytes([*samples[:-1], (image + bytes(len(content) - len(shorter)), label)])


def other_offsets(content: bytes) -> bytes:
    return content[:4] + struct.pack("<2I", 2**32 - 9, 3) + content[12:]


def rows_of_arrow(content: bytes) -> bytes:
    """Return what litdata writes instead of plain bytes where pyarrow is installed: empty samples before a table."""
    return struct.pack("<8I", 6, *[32] * 7) + bytes(len(content) - 32)


@pytest.mark.parametrize("change", [cut, appended, other_version, other_offsets, rows_of_arrow])
def test_a_chunk_that_does_not_fit_the_index_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]):
    samples = drawn_samples(6)
    found = opened(write_set(tmp_path, samples), [label for _, label in samples])
    file = tmp_path / "chunk-0-0.bin"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=rf"^{file} of [\d,]+ bytes is damaged, of another version than index.json"):
        found.read(0)


def test_another_label_than_the_listed_one_is_refused(tmp_path: Path):
    found = opened(write_set(tmp_path, drawn_samples(6)), [0, 1, 2, 0, 1, 1])
    with pytest.raises(DataError, match=r"^image chunk-0-0/00005 of \S+: has the label 2, and imago.json says 1"):
        found.read(5)


# From a store


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch, s3_store() as server:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server


@pytest.fixture
def streamed(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """Give the address of a dataset of 20 samples in 4 chunks, and an empty cache."""
    prefix = str(abs(hash(request.node.name)))
    root = upload(store, write_set(tmp_path / "set", drawn_samples(20)), prefix=prefix)
    chunks._downloader.cache_clear()
    store.requests.clear()
    yield root, tmp_path / "cache"
    store.failing.clear()
    store.num_failures = 10**6
    chunks._downloader.cache_clear()


LABELS = [index % 3 for index in range(20)]


def test_a_chunk_is_downloaded_once_and_read_from_the_cache_afterwards(store: Store, streamed: tuple[str, Path]):
    found = opened(streamed[0], LABELS, streamed[1])
    for index in (3, 0, 5, 3, 6):
        np.testing.assert_array_equal(found.read(index), photo(index, 12))
    assert {name: count for (method, name), count in store.requests.items() if method == "GET" and "bin" in name} == {
        "chunk-0-0.bin": 1,
        "chunk-0-1.bin": 1,
    }
    opened(streamed[0], LABELS, streamed[1]).read(1)
    assert store.requests["GET", "chunk-0-0.bin"] == 1


def test_threads_and_processes_that_need_a_chunk_at_once_download_it_once(store: Store, streamed: tuple[str, Path]):
    found = opened(streamed[0], LABELS, streamed[1])
    threads = [threading.Thread(target=found.read, args=(index % 6,)) for index in range(8)]
    pids = []
    for _ in range(2):
        if (pid := os.fork()) == 0:
            found.read(0)
            os._exit(0)
        pids.append(pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert store.requests["GET", "chunk-0-0.bin"] == 1


def test_the_cache_keeps_its_limit_and_what_was_used_last(store: Store, streamed: tuple[str, Path]):
    size = max(chunk.num_bytes for chunk in opened(streamed[0], LABELS).files.chunks)
    found = opened(streamed[0], LABELS, streamed[1], 3 * size)
    for index in (0, 6, 12, 0, 18):  # of chunks 0, 1, 2, 0, 3
        found.read(index)
    kept = sorted(path.name for path in streamed[1].glob("*/*.bin"))
    assert kept == ["chunk-0-0.bin", "chunk-0-2.bin", "chunk-0-3.bin"]
    assert not [*streamed[1].glob("*/*.part")]


def test_another_version_of_the_dataset_has_another_folder_and_the_old_one_gives_way(
    store: Store, streamed: tuple[str, Path], tmp_path: Path
):
    size = sum(chunk.num_bytes for chunk in opened(streamed[0], LABELS).files.chunks)
    for version in (0, 1):
        changed = [(png(photo(100 * version + index, 12)), LABELS[index]) for index in range(20)]
        root = upload(store, write_set(tmp_path / f"v{version}", changed, updated=version), prefix="versions")
        found = opened(root, LABELS, streamed[1], int(1.5 * size))
        for index in range(20):
            np.testing.assert_array_equal(found.read(index), photo(100 * version + index, 12))
    assert sum(path.stat().st_size for path in streamed[1].glob("*/*.bin")) <= 1.5 * size


@pytest.mark.parametrize("fault", ["half", "error", "slow"])
def test_a_fault_that_passes_is_retried(
    store: Store, streamed: tuple[str, Path], fault: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(chunks.LIMITS, "read_timeout", 0.3)
    found = opened(streamed[0], LABELS, streamed[1])
    store.failing["chunk-0-0.bin"], store.num_failures = fault, 1
    np.testing.assert_array_equal(found.read(2), photo(2, 12))
    assert store.num_failures == 0


@pytest.mark.parametrize(
    ("fault", "message"), [("half", "read"), ("error", "503|SlowDown|Slow Down"), ("slow", "[Tt]imeout|timed out")]
)
def test_a_fault_that_stays_is_one_line_that_names_the_chunk(
    store: Store, streamed: tuple[str, Path], fault: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(chunks.LIMITS, "read_timeout", 0.2)
    monkeypatch.setitem(chunks.LIMITS, "retries", {"total_max_attempts": 1})
    monkeypatch.setattr(store, "slow_s", 0.4)
    found = opened(streamed[0], LABELS, streamed[1])
    store.failing["chunk-0-0.bin"] = fault
    with pytest.raises(DataError, match=rf"^{streamed[0]}/chunk-0-0.bin cannot be downloaded: .*({message})") as caught:
        found.read(2)
    assert "\n" not in str(caught.value)
    assert not [path for path in streamed[1].glob("*/*") if path.suffix != ".lock"]


def test_a_chunk_of_another_size_in_the_store_is_not_kept(store: Store, streamed: tuple[str, Path], tmp_path: Path):
    found = opened(streamed[0], LABELS, streamed[1])
    file = tmp_path / "set" / "chunk-0-0.bin"
    file.write_bytes(file.read_bytes()[:500])
    upload(store, tmp_path / "set", prefix=streamed[0].rpartition("/")[2])
    with pytest.raises(DataError, match="chunk-0-0.bin has 500 bytes, not the size or SHA-256 in index.json"):
        found.read(0)
    assert not [*streamed[1].glob("*/*.bin")]


def test_a_flipped_bit_in_the_store_is_found_by_the_sha_256(store: Store, streamed: tuple[str, Path], tmp_path: Path):
    directory = tmp_path / "set"
    hashes = {path.name: chunks.sha256_of(path) for path in directory.glob("*.bin")}
    (directory / "imago.json").write_text(json.dumps({"sha256": hashes}))
    file = directory / "chunk-0-1.bin"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    root = upload(store, directory, prefix="flipped")
    found = opened(root, LABELS, streamed[1])
    found.read(0)
    with pytest.raises(DataError, match="chunk-0-1.bin has .* bytes, not the size or SHA-256"):
        found.read(6)


def test_a_missing_bucket_a_missing_path_and_missing_credentials_are_one_line(
    store: Store, streamed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
):
    for root, message in (("s3://no-such-bucket/set", "404"), (f"{streamed[0]}-other", "404"), ("s3://a b", "bucket")):
        with pytest.raises(DataError, match=f"^{root}/index.json cannot be downloaded: .*{message}.*; check data.root"):
            opened(root, LABELS)
    chunks._downloader.cache_clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(DataError, match="index.json cannot be downloaded: .*credentials.*AWS_ACCESS_KEY_ID"):
        opened(streamed[0], LABELS)


def test_a_full_disk_is_one_line(store: Store, streamed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch):
    found = opened(streamed[0], LABELS, streamed[1])

    class Full:
        def download_fileobj(self, url: str, file: Any) -> None:
            file.write(b"some")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunks, "_downloader", lambda root: (Full(), (ZeroDivisionError,)))
    with pytest.raises(DataError, match=r"chunk-0-0.bin: No space left on device; free some space"):
        found.read(0)
    assert not [path for path in streamed[1].glob("*/*") if path.suffix != ".lock"]


def test_without_litdata_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chunks._downloader.cache_clear()
    monkeypatch.setitem(sys.modules, "litdata.streaming.downloader", None)
    with pytest.raises(chunks.ConfigError, match=r"s3://b/c needs the package litdata.*\[litdata\]"):
        opened("s3://b/c", [0])


def test_litdata_writes_nothing_outside_and_asks_no_other_host(
    store: Store, streamed: tuple[str, Path], tmp_path: Path
):
    """In a process of its own with an empty home, whose sockets may only reach the store."""
    code = f"""
import socket
connect = socket.socket.connect
def only_the_store(self, address):
    assert address[0] == "127.0.0.1", address
    return connect(self, address)
socket.socket.connect = only_the_store
import numpy as np
from pathlib import Path
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from data.test_chunks import opened, LABELS
opened({streamed[0]!r}, LABELS, Path({str(tmp_path / "cache")!r})).read(0)
"""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(temporary), "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [*home.rglob("*"), *temporary.rglob("*")] == []
    assert [path.name for path in (tmp_path / "cache").glob("*/*.bin")] == ["chunk-0-0.bin"]
