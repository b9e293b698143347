"""Every file is decoded once, later only new and changed ones, and no failure loses results."""

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_images import photo
from image_files import labeled_files
from PIL import Image

from imago.data import examine as module
from imago.data.examine import Examination, examine, map_in_threads
from imago.data.image_record import examine_file


def write(root: Path, count: int) -> list[str]:
    root.mkdir()
    names = [f"{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.fromarray(photo(number, 16)).save(root / name)
    return names


def examined(root: Path, names: list[str], cache_dir: Path) -> Examination:
    return examine(labeled_files(root, names), cache_dir)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    names: list[str] = []

    def spy(path: Path, max_pixels: int):
        names.append(path.name)
        return examine_file(path, max_pixels)

    monkeypatch.setattr(module, "examine_file", spy)
    return names


def test_only_new_and_changed_files_are_decoded_again_and_results_follow_the_order_of_the_files(
    tmp_path: Path, decoded: list[str]
):
    names = write(tmp_path / "set", 6)
    examined(tmp_path / "set", names[:4], tmp_path / "cache")
    assert sorted(decoded) == names[:4]
    decoded.clear()
    Image.fromarray(photo(99, 20)).save(tmp_path / "set" / names[1])
    os.utime(tmp_path / "set" / names[2], ns=(0, 1))
    whole = examined(tmp_path / "set", names, tmp_path / "cache")
    assert sorted(decoded) == [names[1], names[2], names[4], names[5]]
    assert whole.records["width"].tolist() == [16, 20, 16, 16, 16, 16]
    decoded.clear()
    some = examined(tmp_path / "set", [names[5], names[1]], tmp_path / "cache")
    assert decoded == []
    assert np.array_equal(some.records, whole.records[[5, 1]])
    assert some.records["mean"][0] == pytest.approx(photo(5, 16).mean(axis=(0, 1)) / 255, abs=1e-6)


def test_an_image_that_is_too_large_now_was_not_read_for_another_limit(tmp_path: Path):
    names = write(tmp_path / "set", 2)
    files = labeled_files(tmp_path / "set", names)
    assert examine(files, tmp_path / "cache").is_good.all()
    found = examine(replace(files, max_pixels=255), tmp_path / "cache")
    assert "16x16, more than 255 pixels" in found.errors[0]
    assert not found.is_good.any()
    assert examine(files, tmp_path / "cache").is_good.all()


def test_a_bad_file_is_decoded_and_reported_every_time(tmp_path: Path, decoded: list[str]):
    names = write(tmp_path / "set", 3)
    (tmp_path / "set" / names[1]).write_bytes(b"")
    for _ in range(2):
        result = examined(tmp_path / "set", names, tmp_path / "cache")
        assert result.is_good.tolist() == [True, False, True]
        assert result.errors[1].startswith("is empty")
    assert (decoded.count(names[1]), decoded.count(names[0])) == (2, 1)


def test_an_interrupted_examination_keeps_what_was_done(tmp_path: Path, decoded: list[str], monkeypatch):
    names = write(tmp_path / "set", 60)

    def interrupted(path: Path, max_pixels: int):
        if path.name == names[40]:
            raise KeyboardInterrupt
        return examine_file(path, max_pixels)

    with monkeypatch.context() as patch:
        patch.setattr(module, "examine_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            examined(tmp_path / "set", names, tmp_path / "cache")
    assert examined(tmp_path / "set", names, tmp_path / "cache").is_good.all()
    assert sorted(decoded) == names[40:]


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut short"])
def test_a_damaged_file_of_results_is_logged_and_replaced(tmp_path: Path, content: bytes, decoded: list[str], caplog):
    names = write(tmp_path / "set", 3)
    examined(tmp_path / "set", names, tmp_path / "cache")
    [file] = (tmp_path / "cache").iterdir()
    file.write_bytes(content)
    for _ in range(2):
        assert examined(tmp_path / "set", names, tmp_path / "cache").is_good.all()
    assert len(decoded) == 2 * len(names)
    assert caplog.text.count("cannot be used, images are examined again") == 1


def test_results_that_cannot_be_kept_are_logged_and_returned(tmp_path: Path, caplog):
    names = write(tmp_path / "set", 2)
    (tmp_path / "cache").write_text("a file where a directory should be")
    with caplog.at_level(logging.WARNING):
        assert examined(tmp_path / "set", names, tmp_path / "cache").is_good.all()
    assert "results cannot be kept" in caplog.text


def test_two_datasets_share_a_directory_of_results_and_unusual_names_are_kept(tmp_path: Path, decoded: list[str]):
    names = write(tmp_path / "a", 1) and write(tmp_path / "b", 1)
    unusual = ["line\nbreak é 猫.png", os.fsdecode(b"\xff.png")]
    for name in unusual:
        Image.fromarray(photo(5, 9)).save(tmp_path / "a" / name)
    for _ in range(2):
        assert examined(tmp_path / "a", names + unusual, tmp_path / "cache").records["width"].tolist() == [16, 9, 9]
        examined(tmp_path / "b", names, tmp_path / "cache")
    assert len(decoded) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_no_files_have_no_records(tmp_path: Path):
    assert len(examined(tmp_path, [], tmp_path).records) == 0
    assert not list(tmp_path.iterdir())


def test_threads_compute_in_order_at_the_same_time_and_only_a_little_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    started = []
    both = threading.Barrier(2)

    def square(index: int) -> int:
        started.append(index)
        both.wait(timeout=20)
        time.sleep(0.001 * (index % 3))
        return index**2

    results = map_in_threads(square, range(100), "squares")
    assert next(results) == 0
    assert len(started) <= 2 * module._NUM_AHEAD_PER_THREAD
    assert list(results) == [index**2 for index in range(1, 100)]
