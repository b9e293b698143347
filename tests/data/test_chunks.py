"""litdata's chunk format: what is read, and what is refused in one line."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunked_sets import chunk_bytes, drawn_samples, numpy_value, opened, pil_value, png, write_set
from drawn_images import photo
from PIL import Image

from imago.data import chunks
from imago.data.chunks import LabeledChunks
from imago.data.dataset import concatenate
from imago.errors import DataError


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
