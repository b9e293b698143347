"""Every file is decoded once, later only new and changed ones, and no failure loses results."""

import itertools
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from drawn_images import photo
from PIL import Image

from imago.data import examine as module
from imago.data.examine import Examination, examine, examine_array
from imago.data.image_record import examine_files


def write(root: Path, count: int) -> list[str]:
    root.mkdir()
    names = [f"{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.fromarray(photo(number, 16)).save(root / name)
    return names


def examined(root: Path, names: list[str], cache_dir: Path, num_processes: int = 2) -> Examination:
    stats = [os.stat(root / name) for name in names]
    sizes, times = (np.array([getattr(stat, key) for stat in stats]) for key in ("st_size", "st_mtime_ns"))
    return examine(root, names, sizes, times, cache_dir, num_processes)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    names: list[str] = []

    def spy(paths: list[str]):
        names.extend(os.path.basename(path) for path in paths)
        return examine_files(paths)

    monkeypatch.setattr(module, "examine_files", spy)
    return names


def test_a_second_examination_decodes_nothing_and_returns_the_same(tmp_path: Path, decoded: list[str]):
    names = write(tmp_path / "set", 40)
    first = examined(tmp_path / "set", names, tmp_path / "cache")
    assert sorted(decoded) == names
    decoded.clear()
    second = examined(tmp_path / "set", names, tmp_path / "cache")
    assert decoded == []
    assert np.array_equal(first.records, second.records)
    assert second.records["mean"][7] == pytest.approx(photo(7, 16).mean(axis=(0, 1)) / 255, abs=1e-6)


def test_only_new_and_changed_files_are_decoded_again(tmp_path: Path, decoded: list[str]):
    names = write(tmp_path / "set", 5)
    examined(tmp_path / "set", names[:4], tmp_path / "cache")
    decoded.clear()
    Image.fromarray(photo(99, 20)).save(tmp_path / "set" / names[1])
    os.utime(tmp_path / "set" / names[2], ns=(0, 1))
    again = examined(tmp_path / "set", names, tmp_path / "cache")
    assert sorted(decoded) == [names[1], names[2], names[4]]
    assert again.records["width"].tolist() == [16, 20, 16, 16, 16]


def test_some_of_the_files_may_be_examined_in_any_order(tmp_path: Path, decoded: list[str]):
    names = write(tmp_path / "set", 6)
    whole = examined(tmp_path / "set", names, tmp_path / "cache")
    decoded.clear()
    part = examined(tmp_path / "set", [names[4], names[1]], tmp_path / "cache")
    assert np.array_equal(part.records, whole.records[[4, 1]])
    examined(tmp_path / "set", names, tmp_path / "cache")
    assert decoded == []


def test_a_bad_file_is_decoded_and_reported_every_time(tmp_path: Path, decoded: list[str]):
    names = write(tmp_path / "set", 3)
    (tmp_path / "set" / names[1]).write_bytes(b"")
    for _ in range(2):
        found = examined(tmp_path / "set", names, tmp_path / "cache")
        assert found.is_good.tolist() == [True, False, True]
        assert found.errors[1].startswith("is empty")
    assert decoded.count(names[1]) == 2
    assert decoded.count(names[0]) == 1


def test_processes_and_threads_return_the_same(tmp_path: Path):
    names = write(tmp_path / "set", module._MIN_FOR_PROCESSES + 10)
    (tmp_path / "set" / names[100]).write_bytes(b"no image")
    by_processes = examined(tmp_path / "set", names, tmp_path / "one")
    halves = [examined(tmp_path / "set", part, tmp_path / "other") for part in (names[:110], names[110:])]
    assert np.array_equal(by_processes.records, np.concatenate([half.records for half in halves]))
    assert by_processes.errors == halves[0].errors + halves[1].errors
    assert by_processes.errors[100].startswith("is not an image")


def test_an_interrupted_examination_keeps_what_was_done(tmp_path: Path, decoded: list[str], monkeypatch):
    names = write(tmp_path / "set", 60)
    decode = module._decode

    def stop_after_two_chunks(paths: list[str], num_processes: int):
        yield from itertools.islice(decode(paths, num_processes), 2 * module._CHUNK)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_decode", stop_after_two_chunks)
    with pytest.raises(KeyboardInterrupt):
        examined(tmp_path / "set", names, tmp_path / "cache")
    monkeypatch.setattr(module, "_decode", decode)
    decoded.clear()
    assert examined(tmp_path / "set", names, tmp_path / "cache").is_good.all()
    assert sorted(decoded) == names[2 * module._CHUNK :]


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut short"])
def test_a_damaged_file_of_results_is_logged_and_replaced(tmp_path: Path, content: bytes, decoded: list[str], caplog):
    names = write(tmp_path / "set", 3)
    examined(tmp_path / "set", names, tmp_path / "cache")
    [file] = (tmp_path / "cache").iterdir()
    file.write_bytes(content)
    decoded.clear()
    assert examined(tmp_path / "set", names, tmp_path / "cache").is_good.all()
    assert sorted(decoded) == names
    assert "cannot be used, images are examined again" in caplog.text
    decoded.clear()
    examined(tmp_path / "set", names, tmp_path / "cache")
    assert decoded == []


def test_results_that_cannot_be_kept_are_logged_and_returned(tmp_path: Path, caplog):
    names = write(tmp_path / "set", 2)
    (tmp_path / "cache").write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert examined(tmp_path / "set", names, tmp_path / "cache").is_good.all()
    assert "results cannot be kept" in caplog.text


def test_two_data_sets_share_a_folder_of_results_and_unusual_names_are_kept(tmp_path: Path, decoded: list[str]):
    names = write(tmp_path / "a", 1) and write(tmp_path / "b", 1)
    odd = "line\nbreak é 猫.png"
    Image.fromarray(photo(5, 9)).save(tmp_path / "a" / odd)
    raw = os.fsdecode(b"\xff.png")
    Image.fromarray(photo(6, 9)).save(tmp_path / "a" / raw)
    for _ in range(2):
        assert examined(tmp_path / "a", [*names, odd, raw], tmp_path / "cache").records["width"].tolist() == [16, 9, 9]
        examined(tmp_path / "b", names, tmp_path / "cache")
    assert len(decoded) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_no_files_have_no_records(tmp_path: Path):
    assert len(examine(tmp_path, [], np.zeros(0, np.int64), np.zeros(0, np.int64), tmp_path, 2).records) == 0
    assert not list(tmp_path.iterdir())


def test_images_in_memory_are_examined_in_their_order():
    images = np.stack([photo(seed, 8).transpose(2, 0, 1) for seed in range(5)])
    found = examine_array(images)
    assert found.is_good.all()
    assert found.records["mean"] == pytest.approx(images.mean(axis=(2, 3)) / 255, abs=1e-6)
    assert len(examine_array(images[:0]).records) == 0
