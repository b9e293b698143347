"""The decoder and the resize return the expected pixels for every kind of image, and name what is broken.

Further kinds of images are in tests/faults/test_images.py.
"""

import contextlib
import io
import json
import math
import random
import struct
import warnings
import zlib
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms
from torchvision.models import get_model_weights

from imago import images
from imago.errors import DataError
from imago.images import Preprocess, read_image, resize_and_crop, resized_sides
from imago.model.torchvision_net import TorchvisionNet

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
NOISE = Image.fromarray(PIXELS)
RAMP = Image.linear_gradient("L").resize((64, 48)).convert("RGB")  # smooth, so that JPEG keeps it closely


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_every_pixel_in_a_file_and_in_memory(tmp_path, kind: str, options: dict):
    data = encode(NOISE, kind, **options)
    (tmp_path / "image").write_bytes(data)
    for source in (tmp_path / "image", data):
        np.testing.assert_array_equal(read_image(source), PIXELS)


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("MPO", {}), ("WEBP", {})]
)
def test_lossy_formats_come_close_to_the_original(kind: str, options: dict):
    pixels = read_image(encode(RAMP, kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - np.asarray(RAMP)).mean() < 2


@pytest.mark.parametrize("name", ["absent.png", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name: str):
    with pytest.raises(DataError, match=f"{tmp_path}.* cannot be read: "):
        read_image(tmp_path / name)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="Windows has no such file")
def test_what_never_ends_is_not_read():
    with pytest.raises(DataError, match="/dev/zero cannot be read: it is not a regular file"):
        read_image(Path("/dev/zero"))


def test_an_invalid_exif_tag_leads_to_the_upright_image_or_a_data_error():
    # With orientation 6, Pillow rewrites the other tags; it cannot write an ImageWidth that is text.
    entries = struct.pack(">HHI4sHHIHH", 0x100, 2, 2, b"a\0\0\0", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + b"\0\0\0\0"
    with contextlib.suppress(DataError):
        assert read_image(encode(RAMP, "JPEG", exif=exif)).shape == (64, 48, 3)


def test_mutated_images_lead_to_pixels_or_a_data_error_and_nothing_else():
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "maker"
    wholes = [encode(NOISE, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    wholes += [encode(NOISE.convert("P"), "GIF"), encode(NOISE.convert("P"), "PNG", transparency=0)]
    wholes += [encode(NOISE, "BMP"), encode(NOISE.convert("CMYK"), "JPEG")]
    draw = random.Random(0)
    outcomes = {"pixels": 0, "error": 0}
    for whole in wholes * 30:
        data = bytearray(whole)
        for _ in range(draw.choice([1, 2, 8])):
            data[draw.randrange(min(len(data), draw.choice([200, 10_000])))] = draw.randrange(256)
        try:
            with warnings.catch_warnings(action="ignore"):  # Pillow comments on broken metadata
                assert read_image(bytes(data)).dtype == np.uint8
            outcomes["pixels"] += 1
        except DataError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 30


def test_black_and_white_become_0_and_255():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read_image(encode(image, "PNG")), [[[0, 0, 0], [255, 255, 255]]])


def test_damage_behind_the_first_frame_of_a_gif_does_not_matter(monkeypatch):
    monkeypatch.setattr("imago.images._has_warned_of_animation", False)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    whole = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    control = whole.rindex(b"\x21\xf9\x04")  # of the second frame
    for length in (0, 1):
        damaged = whole[:control] + b"\x21\xf9" + bytes([length]) + whole[control + 3 :]
        np.testing.assert_array_equal(read_image(damaged), read_image(whole))


# Transformation of the stored image for each value of the EXIF orientation tag.
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_is_turned_upright_by_its_exif_tag(orientation: int):
    exif = Image.Exif()
    exif[0x112] = orientation
    np.testing.assert_array_equal(read_image(encode(NOISE, "PNG", exif=exif)), UPRIGHT[orientation](PIXELS))


# TIFF: bits, sign, byte order, and whether 0 means black or white


def gray_tiff(stored: bytes, bits: int, zero_is_black: int, order: str, sample_format: int = 1) -> bytes:
    """Return an uncompressed gray TIFF of 16 x 4 pixels with these bytes of data, written by hand."""
    tags = {256: 16, 257: 4, 258: bits, 259: 1, 262: zero_is_black, 273: 8 + 2 + 12 * 10 + 4, 277: 1, 278: 4}
    tags |= {279: len(stored), 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    signature = b"II*\0" if order == "<" else b"MM\0*"
    return signature + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + stored


GRAY = np.random.default_rng(2).integers(0, 256, (4, 16))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("zero_is_black", [0, 1])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_gray_tiff_is_read_as_the_same_image_whatever_its_form(bits: int, zero_is_black: int, order: str):
    values = GRAY * (1 if bits == 8 else 257)
    stored = values if zero_is_black else 2**bits - 1 - values
    pixels = read_image(gray_tiff(stored.astype(f"{order}u{bits // 8}").tobytes(), bits, zero_is_black, order))
    np.testing.assert_array_equal(pixels, np.repeat(GRAY[..., None], 3, axis=2))


def test_white_of_12_bits_is_white():
    # Two values of 12 bits in three bytes: 4095, 0, 4095, 0, ...
    pixels = read_image(gray_tiff(b"\xff\xf0\x00" * 32, 12, 1, "<"))[..., 0]
    np.testing.assert_array_equal(pixels, np.tile([255, 0], (4, 8)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("zero_is_black", [0, 1])
@pytest.mark.parametrize(
    ("bits", "sample_format", "kind"),
    [(8, 2, "signed"), (16, 2, "signed"), (32, 2, "signed"), (32, 1, "unsigned")]
    + [(bits, 3, "floating-point") for bits in (16, 32, 64)],
)
def test_other_numbers_in_a_tiff_are_refused_by_their_name(bits, sample_format, kind, zero_is_black, order):
    data = gray_tiff(bytes(64 * bits // 8), bits, zero_is_black, order, sample_format)
    with pytest.raises(DataError, match=rf"\b{bits}-bit {kind} pixels.*save it as 8-bit or 16-bit unsigned"):
        read_image(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("mode", "photometric"), [("RGB", 2), ("CMYK", 5)])
@pytest.mark.parametrize("bits", [8, 16])
def test_planes_of_16_bits_are_refused_and_those_of_8_bits_are_read(bits: int, mode: str, photometric: int, order: str):
    num, planes = len(mode), np.random.default_rng(3).integers(0, 256, (len(mode), 4, 16), np.uint8)
    stored = (planes.astype(int) * (1 if bits == 8 else 257)).astype(f"{order}u{bits // 8}").tobytes()
    lists_at = 8 + 2 + 12 * 10 + 4  # after 10 tags
    stored_at, num_bytes = lists_at + 3 * 4 * num, len(stored) // num
    lists = [[bits] * num, [stored_at + num_bytes * plane for plane in range(num)], [num_bytes] * num]
    at = [lists_at + 4 * num * index for index in range(3)]
    tags = {256: 16, 257: 4, 258: at[0], 259: 1, 262: photometric, 273: at[1], 277: num, 278: 4, 279: at[2], 284: 2}
    counts = dict.fromkeys((258, 273, 279), num)
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    data += b"".join(struct.pack(f"{order}HHII", tag, 4, counts.get(tag, 1), value) for tag, value in tags.items())
    data += bytes(4) + b"".join(struct.pack(f"{order}{num}I", *values) for values in lists) + stored
    if bits == 8:
        image = Image.merge(mode, [Image.fromarray(plane) for plane in planes])
        np.testing.assert_array_equal(read_image(data), read_image(encode(image, "TIFF")))
    else:
        with pytest.raises(DataError, match="^the file is an uncompressed planar TIFF of over 8 bits"):
            read_image(data)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_a_gray_png_becomes_white_at_every_depth(bits: int):
    values = np.random.default_rng(bits).integers(0, 2**bits, (4, 16))
    rows = ["".join(format(value, f"0{bits}b") for value in row) for row in values]
    raw = b"".join(b"\0" + int(row, 2).to_bytes(2 * bits, "big") for row in rows)
    transparent = int(values[1, 2])

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 16, 4, bits, 0, 0, 0, 0)
    value = struct.pack(">H", transparent)
    chunks = [(b"IHDR", header), (b"tRNS", value), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    pixels = read_image(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks))
    expected = np.where(values == transparent, 255, values * 255 // (2**bits - 1))
    np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


# resize_and_crop


def square(size: int, resize: int, crop: str = "center") -> Preprocess:
    return Preprocess(size, resize, crop, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


THIRDS = np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), 40, axis=1).repeat(40, axis=0)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2)], ids=["wide", "tall"])
def test_center_keeps_only_the_middle(axes: tuple[int, ...]):
    middle = resize_and_crop(THIRDS.transpose(axes), square(16, 16)).transpose(axes)[:, 2:-2]
    np.testing.assert_array_equal(middle, np.full((16, 12, 3), (0, 255, 0)))


def test_squash_keeps_the_whole_image():
    squashed = resize_and_crop(THIRDS, square(15, 15, "squash"))
    np.testing.assert_array_equal(squashed[7, [1, 7, 13]], np.diag([255, 255, 255]))


ODD_SIZES = [
    (37, 91),
    (91, 37),
    (224, 225),
    (5, 80),
    (16, 16),
    (333, 500),
    (375, 500),
    (501, 333),
    (257, 256),
    (97, 231),
]


@pytest.mark.parametrize(("size", "resize"), [(32, 36), (32, 32), (33, 38), (224, 232), (224, 235), (224, 256)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_center_equals_torchvisions_resize_and_center_crop(interpolation: str, size: int, resize: int):
    theirs = transforms.Compose(
        [transforms.Resize(resize, transforms.InterpolationMode(interpolation)), transforms.CenterCrop(size)]
    )
    for shape in ODD_SIZES:
        pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
        ours = resize_and_crop(pixels, replace(square(size, resize), interpolation=interpolation))
        np.testing.assert_array_equal(ours, np.asarray(theirs(Image.fromarray(pixels))), str(shape))


@pytest.mark.parametrize(("crop_mode", "crop"), [("squash", "squash_center"), ("center", "center")])
@pytest.mark.parametrize("crop_pct", [0.9, 0.95, 0.91])
def test_both_crops_equal_those_of_timm(crop_mode: str, crop: str, crop_pct: float):
    data = pytest.importorskip("timm.data")
    theirs = data.create_transform(
        (3, 64, 64), crop_pct=crop_pct, crop_mode=crop_mode, interpolation="bicubic", mean=(0,) * 3, std=(1,) * 3
    )
    record = replace(square(64, math.floor(64 / crop_pct), crop), interpolation="bicubic")
    for shape in ODD_SIZES:
        pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
        expected = (theirs(Image.fromarray(pixels)) * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(resize_and_crop(pixels, record), expected, str(shape))


def test_scaled_sides_equal_those_of_torchvision_for_many_sizes():
    from torchvision.transforms.functional import _compute_resized_output_size

    for width, height, resize in product(range(1, 700, 23), range(1, 700, 29), (32, 232, 235, 256)):
        expected = _compute_resized_output_size((height, width), [resize])
        assert list(resized_sides(width, height, square(32, resize)))[::-1] == expected


@pytest.mark.parametrize("shape", [(37, 91), (91, 37), (16, 16)])
def test_the_cropped_part_alone_is_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    whole = resize_and_crop(pixels, square(33, 38)).astype(int)
    monkeypatch.setattr(images, "MAX_PIXELS", 0)
    assert np.abs(resize_and_crop(pixels, square(33, 38)) - whole).max() <= 2


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "swin_t"])
def test_a_photo_is_prepared_as_torchvision_prepares_it_for_its_own_weights(name: str, real_data: Path):
    record = Preprocess.from_dict(TorchvisionNet.weights_preprocess(name, "default"))
    for photo in sorted((real_data / "hymenoptera_data" / "val" / "ants").glob("*.jpg"))[:4]:
        theirs = get_model_weights(name).DEFAULT.transforms()(Image.open(photo).convert("RGB"))
        ours = (resize_and_crop(read_image(photo), record) / 255 - np.array(record.mean)) / np.array(record.std)
        assert np.abs(ours - theirs.permute(1, 2, 0).numpy()).max() < 1e-5


@pytest.mark.parametrize("crop", ["center", "squash"])
def test_an_image_of_the_right_size_comes_back_unchanged(crop: str):
    pixels = PIXELS[:, :24]
    np.testing.assert_array_equal(resize_and_crop(pixels, square(24, 24, crop)), pixels)


@pytest.mark.parametrize("shape", [(4000, 1), (1, 4000)])
def test_a_thin_image_is_never_scaled_up_as_a_whole(shape: tuple[int, int]):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels.reshape(-1, 3)[1900:2100] = 77
    # Scaled as a whole it would be 20,000 x 80,000,000 pixels: no machine has the memory.
    np.testing.assert_array_equal(resize_and_crop(pixels, square(224, 20_000)), np.full((224, 224, 3), 77))


def test_preprocess_survives_json():
    preprocess = Preprocess(224, 256, "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "group4"])
def test_nothing_is_printed_for_a_damaged_tiff(compression: str, capfd: pytest.CaptureFixture):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert("1" if compression == "group4" else "RGB").save(
        content, "TIFF", compression=compression
    )
    data = bytearray(content.getvalue())
    data[len(data) // 3 : len(data) // 3 + 40] = b"\xff" * 40
    with contextlib.suppress(DataError):
        read_image(bytes(data))
    assert capfd.readouterr() == ("", "")
