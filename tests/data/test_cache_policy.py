"""Decoded images are kept where they fit; what does not fit is refused with the numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imago.data import cache_policy
from imago.data.cache_policy import choose_store, estimate_bytes
from imago.data.dataset import LabeledFiles
from imago.errors import ConfigError

GIB = 2**30
FOLDER = Path("data/cache")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GiB of memory and 100 GiB of disk are free."""
    monkeypatch.setattr(cache_policy, "available_memory_bytes", lambda: 10 * GIB)
    monkeypatch.setattr(cache_policy, "free_disk_bytes", lambda folder: 100 * GIB)


@pytest.mark.parametrize(
    ("where", "gibibytes", "num_processes", "kept", "chosen"),
    [
        ("none", 1, 1, 0, "none"),
        ("ram", 10, 1, 0, "ram"),
        ("ram", 5, 2, 0, "ram"),
        ("disk", 100, 1, 0, "disk"),
        ("disk", 300, 1, 250, "disk"),  # most of it is there already
        ("auto", 5, 1, 0, "ram"),
        ("auto", 6, 1, 0, "disk"),
        ("auto", 3, 2, 0, "disk"),  # every process would keep its own
        ("auto", 50, 4, 0, "disk"),  # on disk they share
        ("auto", 51, 1, 0, "none"),
        ("auto", 5, 1, 5, "disk"),  # nothing is left to decode
        ("auto", 300, 1, 300, "disk"),
    ],
)
def test_images_go_where_they_fit(where: str, gibibytes: int, num_processes: int, kept: int, chosen: str):
    assert choose_store(where, gibibytes * GIB, FOLDER, num_processes, kept * GIB)[0] == chosen


def test_the_reason_is_told_with_its_numbers():
    assert choose_store("auto", 512 * 2**20, FOLDER, 2)[1] == "1.0 GiB of 10.0 GiB available"
    assert choose_store("auto", 8 * GIB, FOLDER, 1)[1] == "8.0 GiB of 100.0 GiB available"
    assert choose_store("auto", 8 * GIB, FOLDER, 1, 8 * GIB)[1] == "8.0 GiB, kept in data/cache by an earlier run"
    assert choose_store("ram", 3 * 2**20, FOLDER, 1)[1] == "3.0 MiB, as typed"
    assert choose_store("auto", 60 * GIB, FOLDER, 1)[1] == (
        "60.0 GiB are over half of the 10.0 GiB of memory and 100.0 GiB of disk; a lower data.decoded_px or "
        "preprocess.size makes them smaller"
    )


@pytest.mark.parametrize(
    ("where", "gibibytes", "text"),
    [
        ("ram", 11, r"^data\.cache=ram: .* need 11\.0 GiB, and memory has 10\.0 GiB available; data\.cache=disk keeps"),
        ("disk", 101, r"^data\.cache=disk: .* need 101\.0 GiB, and data/cache has 100\.0 GiB .*; data\.cache=none"),
        ("floppy", 1, r"^data\.cache=floppy is not one of none, ram, disk, auto\.$"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(where: str, gibibytes: int, text: str):
    with pytest.raises(ConfigError, match=text) as error:
        choose_store(where, gibibytes * GIB, FOLDER, 1)
    assert "\n" not in str(error.value)


def test_without_files_in_memory_the_disk_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("os.memfd_create")
    assert choose_store("auto", GIB, FOLDER, 1)[0] == "disk"
    with pytest.raises(ConfigError, match=r"^data\.cache=ram"):
        choose_store("ram", GIB, FOLDER, 1)


def test_an_estimate_of_few_images_is_exact_and_needs_no_decoding(tmp_path: Path):
    for name, (width, height) in {"a.png": (20, 10), "b.png": (30, 40)}.items():
        Image.new("RGB", (width, height)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    sizes = np.zeros(2, np.int64)
    files = LabeledFiles(tmp_path, ("a.png", "b.png"), sizes, sizes, sizes)
    assert estimate_bytes(files, lambda height, width: (height, width)) == (200 + 1200) * 3
    assert estimate_bytes(files, lambda height, width: (8, 8)) == 2 * 64 * 3
    bad = LabeledFiles(tmp_path, ("a.png", "c.png"), sizes, sizes, sizes)
    assert estimate_bytes(bad, lambda height, width: (height, width)) == 2 * 200 * 3
