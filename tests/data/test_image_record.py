"""The record of an image describes it, and a bad file has an error instead."""

from pathlib import Path

import numpy as np
import pytest
from drawn_images import photo
from PIL import Image

from imago.data.image_record import IMAGE_RECORD_DTYPE, KINDS, examine_file, examine_pixels
from imago.images import FORMATS


def kinds_of(record: np.void) -> set[str]:
    return {name for bit, name in enumerate(KINDS) if record["kinds"] >> bit & 1}


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_size_and_format_of_a_file_are_recorded(tmp_path: Path, suffix: str):
    file = saved(tmp_path / f"a.{suffix}", Image.new("RGB", (30, 20), (10, 200, 90)))
    record, error = examine_file(file)
    assert error == ""
    assert (record["width"], record["height"]) == (30, 20)
    assert FORMATS[record["format"]] == Image.open(file).format


def test_the_format_follows_the_content_and_not_the_suffix(tmp_path: Path):
    record, _ = examine_file(saved(tmp_path / "really a png.jpg", Image.new("RGB", (4, 4)), format="PNG"))
    assert FORMATS[record["format"]] == "PNG"


def test_unusual_kinds_are_recorded(tmp_path: Path):
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    color = Image.fromarray(photo(0, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        saved(tmp_path / "color.png", color): set(),
        saved(tmp_path / "gray.png", gray): {"gray"},
        saved(tmp_path / "deep.png", deep): {"gray", "16-bit"},
        saved(tmp_path / "palette.png", color.quantize(8)): {"palette"},
        saved(tmp_path / "cmyk.jpg", color.convert("CMYK")): {"CMYK"},
        saved(tmp_path / "alpha.png", color.convert("RGBA")): {"transparent"},
        saved(tmp_path / "moving.webp", color, save_all=True, append_images=[gray.convert("RGB")]): {"animated"},
        saved(tmp_path / "turned.jpg", Image.new("RGB", (8, 4)), exif=exif): {"rotated by EXIF"},
    }
    for file, expected in files.items():
        record, error = examine_file(file)
        assert (file.name, kinds_of(record), error) == (file.name, expected, "")
    assert (record["width"], record["height"]) == (4, 8)  # upright


def test_mean_and_mean_square_are_those_of_all_pixels(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    record, _ = examine_file(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    shares = pixels.reshape(-1, 3) / 255
    assert record["mean"] == pytest.approx(shares.mean(axis=0), abs=1e-6)
    assert record["mean_square"] == pytest.approx((shares**2).mean(axis=0), abs=1e-6)


def test_a_thumbnail_is_the_mean_of_blocks():
    pixels = photo(1, 64)
    blocks = pixels.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    records = examine_pixels([pixels], 1)
    assert np.abs(records["thumbnail"][0] - blocks).max() <= 1


def test_the_same_pixels_in_memory_and_in_a_file_have_the_same_record(tmp_path: Path):
    pixels = photo(2)
    from_file, _ = examine_file(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    _, in_memory = examine_pixels([photo(1), pixels], 2)
    for name in ("width", "height", "mean", "mean_square", "thumbnail"):
        assert np.array_equal(from_file[name], in_memory[name])
    assert in_memory["format"] == -1
    assert len(examine_pixels([], 0)) == 0


def test_only_files_with_the_same_bytes_share_a_content_hash(tmp_path: Path):
    file = saved(tmp_path / "a.jpg", Image.fromarray(photo(3)))
    copy, other = tmp_path / "b.jpg", tmp_path / "c.jpg"
    copy.write_bytes(file.read_bytes())
    other.write_bytes(file.read_bytes() + b"\0")
    first, second, third = (examine_file(path)[0]["content_hash"] for path in (file, copy, other))
    assert first == second != third


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\x89PNG\r\n\x1a\n", "is damaged"),
        (None, "cannot be read: No such file or directory."),
    ],
)
def test_a_bad_file_has_its_reason_and_an_empty_record(tmp_path: Path, content: bytes | None, reason: str):
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    record, error = examine_file(bad)
    assert error.startswith(reason)
    assert record == np.zeros(1, IMAGE_RECORD_DTYPE)[0]


def test_of_an_animation_that_is_cut_after_its_first_frame_that_frame_is_examined(tmp_path: Path):
    """Pillow decodes the first frame, and fails in various ways when asked whether there are more."""
    frames = [Image.fromarray(photo(seed)).quantize(16) for seed in range(3)]
    whole = tmp_path / "whole.gif"
    frames[0].save(whole, save_all=True, append_images=frames[1:])
    data, readable = whole.read_bytes(), 0
    for length in range(len(data) // 4, len(data), 7):
        (tmp_path / "cut.gif").write_bytes(data[:length])
        record, error = examine_file(tmp_path / "cut.gif")
        if not error:
            readable += 1
            assert (record["width"], record["height"]) == frames[0].size
            np.testing.assert_array_equal(record["thumbnail"], examine_file(whole)[0]["thumbnail"])
    assert readable > 10
    record, _ = examine_file(whole)
    assert record["kinds"] & 1 << KINDS.index("animated")
