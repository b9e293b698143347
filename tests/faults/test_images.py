"""Bad and unusual image files, each created here and loaded by the loader of a run.

The name or the id of a test begins with the row of the fault catalog. A bad image is named with its class and the
reason in one line; an unusual one is loaded as an image viewer shows it.
"""

import csv
import io
import logging
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import labeled_files
from PIL import Image, ImageFile

from imago.data.examine import examine
from imago.errors import DataError
from imago.images import Preprocess, read_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
RED, BLUE = (200, 30, 60), (20, 40, 220)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bit_depth: int, color_type: int, rows: bytes) -> bytes:
    """Return the bytes of a PNG that Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def black_and_white(side: int) -> bytes:
    """Return the bytes of a valid PNG of side x side pixels in a few kilobytes."""
    return png(side, side, 1, 0, bytes(side * (1 + (side + 7) // 8)))


def jpeg_that_claims(side: int) -> bytes:
    data = bytearray(encode(NOISE, "JPEG"))
    size_at = data.index(b"\xff\xc0") + 5
    data[size_at : size_at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def float_tiff() -> bytes:
    return encode(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF")


JPEG, PNG = encode(NOISE, "JPEG"), encode(NOISE, "PNG")
CUT = "is damaged: it is truncated; delete it or copy it again."
BAD = [
    pytest.param("x.jpg", JPEG[: len(JPEG) // 2], CUT, id="1-half a JPEG"),
    pytest.param("x.jpg", JPEG[:-2], CUT, id="1-JPEG without its last 2 bytes"),
    pytest.param("x.png", PNG[: len(PNG) // 2], CUT, id="2-half a PNG"),
    pytest.param("x.png", flip(PNG, len(PNG) // 2), "is damaged: broken", id="3-PNG with a flipped byte"),
    pytest.param("x.jpg", b"", "is empty (0 bytes)", id="5-zero bytes"),
    pytest.param("x.png", b"<html><body>404", "is not an image (starts with b'<html><body>')", id="6-HTML"),
    pytest.param("x.png", bytes(range(256)), "is not an image (starts with b'\\x00\\x01", id="6-other bytes"),
    pytest.param("x.tiff", float_tiff(), "holds floating-point or 32-bit pixels", id="14-float TIFF"),
]


def load_val(root: Path, set_up: Callable, crop: str = "squash", **settings) -> torch.Tensor:
    """Return the validation images of a run: uint8 (N, 3, 16, 16), in the order of the names."""
    data = set_up(root, **settings)
    data.preprocess = Preprocess(16, 16, crop, (0.0,) * 3, (1.0,) * 3)
    return torch.cat([images for images, _ in data.val_dataloader()])


def with_image(root: Path, fill: Callable, name: str, data: bytes) -> Path:
    """Create a sound data set whose only validation image is this one, of class bee."""
    fill(root, {"train/ant": 4, "train/bee": 4, "test/ant": 1})
    (root / "val" / "bee").mkdir(parents=True)
    (root / "val" / "bee" / name).write_bytes(data)
    return root


@pytest.mark.parametrize("num_workers", [pytest.param(0, id="here"), pytest.param(2, id="7-in workers")])
@pytest.mark.parametrize(("name", "data", "reason"), BAD)
def test_a_bad_image_ends_the_run_with_its_file_its_class_and_the_reason(
    tmp_path: Path, fill: Callable, set_up: Callable, num_workers: int, name: str, data: bytes, reason: str
):
    root = with_image(tmp_path / "set", fill, name, data)
    with pytest.raises(DataError) as caught:
        load_val(root, set_up, num_workers=num_workers)
    text = str(caught.value)
    assert text.startswith(f"an image of class 'bee': {root}/val/bee/{name} {reason}")
    assert text.isprintable()


@pytest.mark.parametrize(("name", "data", "reason"), BAD)
def test_a_bad_image_may_be_left_out_and_is_listed_in_the_run_folder(
    tmp_path: Path, fill: Callable, set_up: Callable, name: str, data: bytes, reason: str
):
    root = fill(tmp_path / "set")
    (root / "val" / "bee" / name).write_bytes(data)
    kept = set_up(root, on_bad_image="skip")
    assert len(kept.splits.val) == 4
    kept.write_split(tmp_path)
    with (tmp_path / "bad_images.csv").open() as file:
        (listed,) = csv.DictReader(file)
    assert listed["path"] == f"val/bee/{name}"
    assert listed["reason"].startswith(reason)


@pytest.mark.slow
def test_3_the_command_ends_with_one_line_and_exit_code_2(tmp_path: Path, fill: Callable, command: Callable):
    root = fill(tmp_path / "set")
    (root / "train" / "bee" / "x.png").write_bytes(flip(PNG, len(PNG) // 2))
    settings = ["data=image_folder", f"data.root={root}", "data.num_workers=2", "preprocess.size=16"]
    done = command("src/train.py", *settings, "data.batch_size=4", f"paths.log_dir={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"error: an image of class 'bee': {root}/train/bee/x\.png is damaged: .*\n", done.stderr)


def test_4_flipped_bytes_in_the_pixels_of_a_jpeg_change_its_hash(tmp_path: Path):
    # No decoder detects them; `check.py` therefore records a hash of every file.
    changed = flip(JPEG, len(JPEG) - 200)
    (tmp_path / "whole.jpg").write_bytes(JPEG)
    (tmp_path / "changed.jpg").write_bytes(changed)
    assert np.abs(read_image(changed).astype(int) - read_image(JPEG)).max() > 20
    examined = examine(labeled_files(tmp_path, ("whole.jpg", "changed.jpg")), tmp_path / "cache")
    assert examined.errors == ("", "")
    assert len(np.unique(examined.records["content_hash"])) == 2


@pytest.mark.parametrize("data", [JPEG[: len(JPEG) // 2], PNG[: len(PNG) // 2]], ids=["8-JPEG", "8-PNG"])
def test_lost_rows_never_become_gray_or_black_ones(data: bytes):
    with pytest.raises(DataError, match="is truncated"):
        read_image(data)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("data", [JPEG[: len(JPEG) // 2], flip(JPEG, 400)[:-2]], ids=["9-cut", "9-flipped and cut"])
def test_the_examination_decodes_the_pixels_and_not_only_the_header(tmp_path: Path, data: bytes):
    Image.open(io.BytesIO(data)).verify()  # finds nothing
    (tmp_path / "x.jpg").write_bytes(data)
    examined = examine(labeled_files(tmp_path, ("x.jpg",)), tmp_path / "cache")
    assert examined.errors[0].startswith("is damaged: ")


def palette(**options) -> bytes:
    image = Image.new("P", (8, 8))
    image.putpalette([*RED, *BLUE])
    return encode(image, "PNG", **options)


def rgb_16_bit() -> bytes:
    row = b"\0" + struct.pack(">3H", *(257 * value for value in RED)) * 8
    return png(8, 8, 16, 2, row * 8)


def flat(mode: str, color: int | tuple[int, ...]) -> Image.Image:
    return Image.new(mode, (8, 8), color)


@pytest.mark.parametrize(
    ("data", "color"),
    [
        pytest.param(encode(flat("RGB", RED).convert("CMYK"), "JPEG", quality=95), RED, id="10-CMYK"),
        pytest.param(
            encode(Image.fromarray(np.full((8, 8), 257 * 99, np.uint16)), "PNG"), (99,) * 3, id="11-16-bit gray"
        ),
        pytest.param(rgb_16_bit(), RED, id="12-16-bit RGB"),
        pytest.param(palette(), RED, id="13-palette"),
        pytest.param(palette(transparency=0), (255,) * 3, id="13-transparent palette"),
        pytest.param(encode(flat("LA", (7, 0)), "PNG"), (255,) * 3, id="13-transparent LA"),
        pytest.param(encode(flat("LA", (0, 128)), "PNG"), (127,) * 3, id="13-half-transparent LA"),
        pytest.param(encode(flat("RGBA", (*RED, 0)), "PNG"), (255,) * 3, id="13-transparent RGBA"),
        pytest.param(encode(flat("RGBA", (*RED, 255)), "PNG"), RED, id="13-opaque RGBA"),
        pytest.param(encode(flat("L", 77), "PNG"), (77,) * 3, id="18-gray"),
    ],
)
def test_colors_are_those_that_a_viewer_shows(
    tmp_path: Path, fill: Callable, set_up: Callable, data: bytes, color: tuple[int, ...]
):
    images = load_val(with_image(tmp_path / "set", fill, "x.png", data), set_up)
    assert images.dtype == torch.uint8
    np.testing.assert_allclose(images[0].permute(1, 2, 0), np.broadcast_to(color, (16, 16, 3)), atol=4)


def test_11_16_bit_gray_noise_keeps_its_mean(tmp_path: Path, fill: Callable, set_up: Callable):
    noise = np.random.default_rng(0).integers(0, 65_536, (256, 256), dtype=np.uint16)
    images = load_val(with_image(tmp_path / "set", fill, "x.png", encode(Image.fromarray(noise), "PNG")), set_up)
    assert images.float().mean().item() == pytest.approx(127.5, abs=1.0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})],
    ids=["15-GIF", "15-WEBP", "15-PNG"],
)
def test_of_an_animation_the_first_frame_is_loaded_with_one_log_message(
    tmp_path: Path, fill: Callable, set_up: Callable, caplog, monkeypatch, kind: str, options: dict
):
    monkeypatch.setattr("imago.images._has_warned_of_animation", False)
    frames = [flat("RGB", RED), flat("RGB", BLUE), flat("RGB", RED)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    root = with_image(tmp_path / "set", fill, f"1.{kind}", data)
    (root / "val" / "bee" / f"2.{kind}").write_bytes(data)
    images = load_val(root, set_up)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), np.broadcast_to(RED, (2, 16, 16, 3)))
    assert [text for text in caplog.messages if "animation" in text] == [
        f"{root}/val/bee/1.{kind} is an animation; only the first frame of such images is used (logged once)"
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("x.avif", "ending .avif", id="16-AVIF"),
        pytest.param("x.JP2", "ending .jp2", id="16-JPEG 2000"),
        pytest.param("x", "no ending", id="16-no ending"),
    ],
)
def test_files_of_unknown_kind_are_counted_in_the_log(
    tmp_path: Path, fill: Callable, set_up: Callable, caplog, name: str, reason: str
):
    root = fill(tmp_path / "set")
    for folder in ("train/ant", "val/bee"):
        (root / folder / name).write_bytes(PNG)
    with caplog.at_level(logging.INFO):
        data = set_up(root)
    assert data.ignored == [(f"train/ant/{name}", reason), (f"val/bee/{name}", reason)]
    assert f"ignored 2 entries: 2 x {reason} (e.g. train/ant/{name})" in caplog.text


def test_17_an_image_is_turned_upright(tmp_path: Path, fill: Callable, set_up: Callable):
    upright = Image.new("RGB", (48, 64), RED)
    upright.paste(BLUE, (0, 0, 48, 32))  # the sky
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was rotated
    data = encode(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    image = load_val(with_image(tmp_path / "set", fill, "x.jpg", data), set_up)[0]
    np.testing.assert_allclose(image[:, :7, :].permute(1, 2, 0), np.broadcast_to(BLUE, (7, 16, 3)), atol=8)
    np.testing.assert_allclose(image[:, 9:, :].permute(1, 2, 0), np.broadcast_to(RED, (7, 16, 3)), atol=8)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("png named.jpg", encode(flat("RGB", RED), "PNG"), id="18-PNG named .jpg"),
        pytest.param("progressive.jpeg", encode(flat("RGB", RED), "JPEG", progressive=True), id="18-progressive"),
        pytest.param("ünï 😀 (1), 100 %.png", encode(flat("RGB", RED), "PNG"), id="18-unicode"),
        pytest.param("UPPER.JPG", encode(flat("RGB", RED), "JPEG"), id="18-upper case"),
    ],
)
def test_unusual_names_and_suffixes_are_loaded(
    tmp_path: Path, fill: Callable, set_up: Callable, name: str, data: bytes
):
    images = load_val(with_image(tmp_path / "set", fill, name, data), set_up)
    np.testing.assert_allclose(images[0].permute(1, 2, 0), np.broadcast_to(RED, (16, 16, 3)), atol=4)


@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)], ids=["19-1x1", "19-1x4000", "19-4000x1"])
def test_extreme_shapes_are_resized(tmp_path: Path, fill: Callable, set_up: Callable, size: tuple[int, int], crop: str):
    data = encode(Image.new("RGB", size, RED), "PNG")
    images = load_val(with_image(tmp_path / "set", fill, "x.png", data), set_up, crop)
    np.testing.assert_array_equal(images[0].permute(1, 2, 0), np.broadcast_to(RED, (16, 16, 3)))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: black_and_white(7_072), id="20-just over 50 Mpx, PNG"),
        pytest.param(lambda: black_and_white(10_000), id="20-100 Mpx PNG"),
        pytest.param(lambda: black_and_white(15_000), id="21-225 Mpx PNG"),
        pytest.param(lambda: png(50_000, 50_000, 1, 0, b"\0"), id="22-2500 Mpx PNG"),
        pytest.param(lambda: jpeg_that_claims(60_000), id="23-3600 Mpx JPEG"),
        pytest.param(lambda: jpeg_that_claims(7_072), id="23-just over 50 Mpx, JPEG"),
    ],
)
def test_images_of_too_many_pixels_are_refused_before_decoding(
    tmp_path: Path, fill: Callable, set_up: Callable, make: Callable
):
    data = make()
    assert len(data) < 40_000
    root = with_image(tmp_path / "set", fill, "x.png", data)
    with pytest.raises(
        DataError, match=rf"class 'bee': {root}/val/bee/x\.png .* more than 50,000,000 pixels; scale it"
    ):
        load_val(root, set_up)


def test_20_the_service_may_set_a_lower_limit():
    with pytest.raises(DataError, match="5100x5100, more than 25,000,000 pixels; scale it down first"):
        read_image(black_and_white(5_100), max_pixels=25_000_000)


@pytest.mark.parametrize(
    "augment", [{}, {"random_resized_crop_scale": [0.35, 1.0]}], ids=["24-resize", "24-random crop"]
)
def test_mixed_sizes_make_batches_of_one_size(tmp_path: Path, fill: Callable, set_up: Callable, augment: dict):
    root = fill(tmp_path / "set")
    for split in ("train", "val"):
        for number, size in enumerate([(8, 8), (70, 100), (300, 20), (1, 1)]):
            NOISE.resize(size).save(root / split / "bee" / f"mixed{number}.png")
    data = set_up(root, augment=augment)
    sizes = {images.shape[1:] for loader in (data.train_dataloader(), data.val_dataloader()) for images, _ in loader}
    assert sizes == {(3, data.preprocess.size, data.preprocess.size)}
