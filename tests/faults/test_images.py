"""Bad and unusual image files: a bad image is named with its class and the reason in one line, an unusual one is
loaded as an image viewer shows it. The ids of the tests are the rows of the list of faults.
"""

import csv
import io
import logging
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import labeled_files
from PIL import Image

from imago.data.examine import examine
from imago.errors import DataError
from imago.images import Preprocess, read_image, resize_and_crop

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


def png_that_claims(side: int) -> bytes:
    return png(side, side, 1, 0, b"\0")


def jpeg_that_claims(side: int) -> bytes:
    data = bytearray(encode(NOISE, "JPEG"))
    size_at = data.index(b"\xff\xc0") + 5
    data[size_at : size_at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def float_tiff() -> bytes:
    return encode(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF")


def half(kind: str) -> bytes:
    whole = encode(NOISE, kind)
    return whole[: len(whole) // 2]


JPEG, PNG = encode(NOISE, "JPEG"), encode(NOISE, "PNG")
CUT = "is damaged: it is truncated; delete it or copy it again."
BAD = {
    "1-half a JPEG": (half("JPEG"), CUT),
    "1-JPEG without its last 2 bytes": (JPEG[:-2], CUT),
    "1-half a BMP": (half("BMP"), CUT),
    "1-half a TIFF": (half("TIFF"), CUT),
    "1-half a WEBP": (half("WEBP"), "is damaged: "),
    "2-half a PNG": (half("PNG"), CUT),
    "3-PNG with a flipped byte": (flip(PNG, len(PNG) // 2), "is damaged: broken"),
    "5-zero bytes": (b"", "is empty (0 bytes)"),
    "6-HTML": (b"<html><body>404", "is not an image (starts with b'<html><body>')"),
    "6-other bytes": (bytes(range(256)), "is not an image (starts with b'\\x00\\x01"),
    "6-half a header": (PNG[:10], "is damaged: its header cannot be read"),
    "6-EPS": (encode(NOISE, "EPS"), "is not an image (starts with b'%!PS"),
    "14-float TIFF": (float_tiff(), "holds 32-bit floating-point pixels"),
}


def load_val(root: Path, set_up: Callable, crop: str = "squash", **settings) -> torch.Tensor:
    """Return the validation images of a run: uint8 (N, 3, 16, 16), in the order of the names."""
    data = set_up(root, **settings)
    data.preprocess = Preprocess(16, 16, crop, (0.0,) * 3, (1.0,) * 3)
    return torch.cat([images for images, _ in data.val_dataloader()])


def with_image(root: Path, fill: Callable, name: str, data: bytes) -> Path:
    """Create a sound dataset whose only validation image is this one, of class bee."""
    fill(root, {"train/ant": 4, "train/bee": 4, "test/ant": 1})
    (root / "val" / "bee").mkdir(parents=True)
    (root / "val" / "bee" / name).write_bytes(data)
    return root


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_a_bad_image_is_named_with_the_reason(tmp_path: Path, data: bytes, reason: str):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "x.png")
    assert str(caught.value).startswith(f"{tmp_path}/x.png {reason}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("num_workers", [pytest.param(0, id="1-here"), pytest.param(2, id="7-in workers")])
def test_a_bad_image_ends_the_run_with_its_file_its_class_and_the_reason(
    tmp_path: Path, fill: Callable, set_up: Callable, num_workers: int
):
    root = with_image(tmp_path / "set", fill, "x.jpg", JPEG[:-2])
    with pytest.raises(DataError) as caught:
        load_val(root, set_up, num_workers=num_workers)
    assert str(caught.value).startswith(f"an image of class 'bee': {root}/val/bee/x.jpg {CUT}")


def test_bad_images_may_be_left_out_and_are_listed_in_the_run_directory(
    tmp_path: Path, fill: Callable, set_up: Callable
):
    root = fill(tmp_path / "set")
    for name, (data, _) in BAD.items():
        (root / "val" / "bee" / f"{name}.png").write_bytes(data)
    good = set_up(root, on_bad_image="skip")
    assert len(good.splits.val) == 4
    good.write_split(tmp_path)
    with (tmp_path / "bad_images.csv").open() as file:
        listed = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == {f"val/bee/{name}.png" for name in BAD}
    assert all(listed[f"val/bee/{name}.png"].startswith(reason) for name, (_, reason) in BAD.items())


@pytest.mark.slow
def test_the_command_ends_with_one_line_and_exit_code_2(tmp_path: Path, fill: Callable, command: Callable):
    root = fill(tmp_path / "set")
    (root / "train" / "bee" / "x.png").write_bytes(flip(PNG, len(PNG) // 2))
    settings = ["data=image_folder", f"data.root={root}", "data.num_workers=2", "preprocess.size=16"]
    done = command("src/train.py", *settings, "data.batch_size=4", f"paths.log_dir={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"error: an image of class 'bee': {root}/train/bee/x\.png is damaged: .*\n", done.stderr)


def test_flipped_bytes_in_the_pixels_of_a_jpeg_change_its_hash(tmp_path: Path):
    # No decoder detects them; `check.py` therefore records a hash of every file.
    changed = flip(JPEG, len(JPEG) - 200)
    (tmp_path / "whole.jpg").write_bytes(JPEG)
    (tmp_path / "changed.jpg").write_bytes(changed)
    assert np.abs(read_image(changed).astype(int) - read_image(JPEG)).max() > 20
    examined = examine(labeled_files(tmp_path, ("whole.jpg", "changed.jpg")), tmp_path / "cache")
    assert examined.errors == ("", "")
    assert len(np.unique(examined.records["content_hash"])) == 2


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
def test_colors_are_those_that_a_viewer_shows(data: bytes, color: tuple[int, ...]):
    pixels = read_image(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, np.broadcast_to(color, (8, 8, 3)), atol=4)


@pytest.mark.parametrize("kind", ["11-PNG", "11-TIFF"])
def test_16_bit_gray_is_scaled_and_not_clipped(kind: str):
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    pixels = read_image(encode(Image.fromarray(levels), kind[3:]))
    np.testing.assert_array_equal(pixels[:, :, 1], levels // 257)


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})], ids=["15-GIF", "15-WEBP", "15-PNG"]
)
def test_of_an_animation_the_first_frame_is_loaded_with_one_log_message(
    tmp_path: Path, caplog, monkeypatch, kind: str, options: dict
):
    monkeypatch.setattr("imago.images._has_warned_of_animation", False)
    frames = [flat("RGB", RED), flat("RGB", BLUE), flat("RGB", RED)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    for name in ("1", "2"):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.broadcast_to(RED, (8, 8, 3)))
    assert caplog.messages == [
        f"{tmp_path}/1 is an animation; only the first frame of such images is used (logged once)"
    ]


def test_files_of_unknown_kind_are_counted_in_the_log(tmp_path: Path, fill: Callable, set_up: Callable, caplog):
    root = fill(tmp_path / "set")
    reasons = {"x": "no file extension", "x.JP2": "file extension .jp2", "x.svg": "file extension .svg"}
    for name in reasons:
        (root / "val" / "bee" / name).write_bytes(PNG)
    with caplog.at_level(logging.INFO):
        data = set_up(root)
    assert data.ignored_entries == [(f"val/bee/{name}", reason) for name, reason in reasons.items()]
    assert (
        "ignored 3 entries: 1 x no file extension (e.g. val/bee/x), 1 x file extension .jp2 (e.g. val/bee/x.JP2)"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("png named.jpg", encode(flat("RGB", RED), "PNG"), id="18-PNG named .jpg"),
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
def test_extreme_shapes_are_resized(size: tuple[int, int], crop: str):
    pixels = read_image(encode(Image.new("RGB", size, RED), "PNG"))
    square = resize_and_crop(pixels, Preprocess(16, 16, crop, (0.0,) * 3, (1.0,) * 3))
    np.testing.assert_array_equal(square, np.broadcast_to(RED, (16, 16, 3)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_that_claims(7_746), id="20-just over 60 Mpx, PNG"),
        pytest.param(png_that_claims(15_000), id="21-225 Mpx PNG"),
        pytest.param(png_that_claims(50_000), id="22-2500 Mpx PNG"),
        pytest.param(jpeg_that_claims(60_000), id="23-3600 Mpx JPEG"),
        pytest.param(jpeg_that_claims(7_746), id="23-just over 60 Mpx, JPEG"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_of_too_many_pixels_are_refused_before_decoding(data: bytes):
    with pytest.raises(DataError, match=r"more than 60,000,000 pixels; scale it down, or raise max_pixels"):
        read_image(data)


def test_a_lower_limit_of_pixels_may_be_set_and_is_itself_allowed():
    assert read_image(PNG, max_pixels=48 * 64).shape == (48, 64, 3)
    with pytest.raises(DataError, match="64x48, more than 3,071 pixels; scale it down, or raise max_pixels"):
        read_image(PNG, max_pixels=48 * 64 - 1)


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


def test_a_warning_of_pillow_without_the_name_of_the_file_is_not_shown(tmp_path: Path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"  # five tags are announced, none is complete
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    code = "import sys; from pathlib import Path; from imago.images import read_image; read_image(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.jpg"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    shown = code.replace("read_image(", "import warnings; warnings.resetwarnings(); read_image(")
    done = subprocess.run([sys.executable, "-c", shown, tmp_path / "a.jpg"], capture_output=True, text=True, check=True)
    assert "Warning" in done.stderr
