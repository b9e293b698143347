"""Chunks from an S3 store: downloaded once, kept within a limit, and one line for each way a store can fail."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunked_sets import Store, drawn_samples, numpy_value, opened, png, s3_store, upload, write_set
from drawn_images import photo

from imago.data import chunks
from imago.errors import DataError


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with s3_store() as server:
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


def test_files_of_others_in_the_cache_directory_are_never_deleted(tmp_path: Path):
    others, own = tmp_path / "flowers-chunks" / "chunk-0-0.bin", tmp_path / ("a1" * 32) / "chunk-0-0.bin"
    for file in (others, own):
        file.parent.mkdir()
        file.write_bytes(b"content")
    chunks.ChunkFiles("s3://bucket", tmp_path, 0)._make_room(1)
    assert [others.exists(), own.exists()] == [True, False]


def test_a_chunk_that_was_cut_off_in_the_cache_is_downloaded_again(store: Store, streamed: tuple[str, Path]):
    opened(streamed[0], LABELS, streamed[1]).read(0)
    [cached] = streamed[1].glob("*/*.bin")
    os.truncate(cached, 20)
    np.testing.assert_array_equal(opened(streamed[0], LABELS, streamed[1]).read(0), photo(0, 12))
    assert store.requests["GET", "chunk-0-0.bin"] == 2


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


def test_a_large_chunk_whose_last_part_is_written_first_is_whole(
    streamed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
):
    """As boto3 writes objects of more than 8 MiB: several threads, each at its own offset."""
    found = opened(streamed[0], LABELS, streamed[1])
    downloader, errors = chunks._downloader(streamed[0])

    class LastPartFirst:
        def download_fileobj(self, url: str, file: Any) -> None:
            content = io.BytesIO()
            downloader.download_fileobj(url, content)
            file.seek(20)
            file.write(content.getvalue()[20:])
            file.seek(0)
            file.write(content.getvalue()[:20])

    monkeypatch.setattr(chunks, "_downloader", lambda root: (LastPartFirst(), errors))
    np.testing.assert_array_equal(found.read(0), photo(0, 12))


def test_a_chunk_of_more_than_8_mib_is_downloaded(store: Store, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (1_000, 1_000, 3), dtype=np.uint8)
    samples = [(numpy_value(pixels), 0)] * 10
    root = upload(store, write_set(tmp_path / "large", samples, per_chunk=10, kind="numpy"))
    found = opened(root, [0] * 10, tmp_path / "cache")
    np.testing.assert_array_equal(found.read(9), pixels)


def test_without_litdata_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chunks._downloader.cache_clear()
    monkeypatch.setitem(sys.modules, "litdata.streaming.downloader", None)
    with pytest.raises(chunks.ConfigError, match=r"s3://b/c needs the package litdata.*\[litdata\]"):
        opened("s3://b/c", [0])


@pytest.mark.slow
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
from chunked_sets import opened
opened({streamed[0]!r}, [index % 3 for index in range(20)], Path({str(tmp_path / "cache")!r})).read(0)
"""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(temporary), "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [*home.rglob("*"), *temporary.rglob("*")] == []
    assert [path.name for path in (tmp_path / "cache").glob("*/*.bin")] == ["chunk-0-0.bin"]
