"""Decoded images are kept where they fit, once, shared by every process, and equal to what decoding returns."""

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from image_files import labeled_files
from PIL import Image

from imago.data import image_cache
from imago.data.dataset import LabeledFiles
from imago.data.image_cache import ImageCache, build_cache, choose_cache, estimate_bytes, open_cache
from imago.errors import ConfigError, DataError
from imago.images import read_image

CLASS_NAMES = ("ant", "bee")
PREPARATION = "size=8"
SIZES = [(12, 9), (8, 8), (30, 5), (7, 20), (16, 16)]  # width, height
GIB = 2**30
DIRECTORY = Path("data/cache")


def listed(root: Path) -> LabeledFiles:
    paths = sorted(root.rglob("*.png"))
    names = [str(path.relative_to(root)) for path in paths]
    return labeled_files(root, names, [CLASS_NAMES.index(path.parent.name) for path in paths])


@pytest.fixture
def files(tmp_path: Path) -> LabeledFiles:
    """Five images of five shapes; one name is not valid UTF-8."""
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        folder = tmp_path / "images" / CLASS_NAMES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / (f"{number}.png" if number else os.fsdecode(b"caf\xe9.png")))
    return listed(tmp_path / "images")


# choose_cache and estimate_bytes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GiB of memory and 100 GiB of disk are free."""
    monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: 10 * GIB)
    monkeypatch.setattr(image_cache, "free_disk_bytes", lambda directory: 100 * GIB)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("mode", "gibibytes", "num_processes", "existing", "chosen", "reason"),
    [
        ("ram", 10, 1, 0, "ram", "10.0 GiB, as typed"),
        ("ram", 5, 2, 0, "ram", "5.0 GiB, as typed"),
        ("disk", 100, 1, 0, "disk", "100.0 GiB, as typed"),
        ("disk", 300, 1, 250, "disk", "300.0 GiB, as typed"),  # most of it exists already
        ("auto", 5, 1, 0, "ram", "5.0 GiB of 10.0 GiB available"),
        ("auto", 0.5, 2, 0, "ram", "1.0 GiB of 10.0 GiB available"),
        ("auto", 6, 1, 0, "disk", "6.0 GiB of 100.0 GiB available"),
        ("auto", 3, 2, 0, "disk", "3.0 GiB of 100.0 GiB available"),  # every process would keep its own
        ("auto", 50, 4, 0, "disk", "50.0 GiB of 100.0 GiB available"),  # on disk they share
        ("auto", 51, 1, 0, "none", "51.0 GiB are over half of the 10.0 GiB of memory and 100.0 GiB of disk; a lower"),
        ("auto", 5, 1, 5, "disk", "5.0 GiB, kept in data/cache by an earlier run"),  # nothing remains to decode
        ("auto", 300, 1, 300, "disk", "300.0 GiB, kept in data/cache by an earlier run"),
    ],
)
def test_images_are_kept_where_they_fit(
    mode: str, gibibytes: float, num_processes: int, existing: int, chosen: str, reason: str
):
    kind, why = choose_cache(mode, int(gibibytes * GIB), DIRECTORY, num_processes, existing * GIB)
    assert kind == chosen
    assert why.startswith(reason)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("mode", "gibibytes", "text"),
    [
        ("ram", 11, r"^data\.cache=ram: .* need 11\.0 GiB, and memory has 10\.0 GiB available; data\.cache=disk keeps"),
        ("disk", 101, r"^data\.cache=disk: .* need 101\.0 GiB, and data/cache has 100\.0 GiB .*; data\.cache=none"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(mode: str, gibibytes: int, text: str):
    with pytest.raises(ConfigError, match=text) as error:
        choose_cache(mode, gibibytes * GIB, DIRECTORY, 1)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("machine")
def test_without_files_in_memory_the_disk_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("os.memfd_create")
    assert choose_cache("auto", GIB, DIRECTORY, 1)[0] == "disk"
    with pytest.raises(ConfigError, match=r"^data\.cache=ram: only Linux has files in memory; data\.cache=disk "):
        choose_cache("ram", GIB, DIRECTORY, 1)


def test_an_estimate_of_few_images_is_exact_and_skips_bad_ones(tmp_path: Path):
    for name, (width, height) in {"a.png": (20, 10), "b.png": (30, 40)}.items():
        Image.new("RGB", (width, height)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    files = labeled_files(tmp_path, ("a.png", "b.png"))
    assert estimate_bytes(files, None) == (200 + 1200) * 3
    assert estimate_bytes(files, 5) == (10 * 5 + 5 * 7) * 3
    assert estimate_bytes(labeled_files(tmp_path, ("a.png", "c.png")), None) == 2 * 200 * 3


# ImageCache, build_cache and open_cache


def reader(files: LabeledFiles) -> Callable[[int], np.ndarray]:
    return partial(files.read, class_names=CLASS_NAMES)


def build(files: LabeledFiles, kind: str, directory: Path, preparation: str = PREPARATION, read=None) -> ImageCache:
    return build_cache(files, read or reader(files), kind, directory, preparation)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_returns_the_pixels_that_were_read_and_they_cannot_be_changed(
    files: LabeledFiles, tmp_path: Path, kind: str
):
    cache = build(files, kind, tmp_path / "kept")
    assert len(cache.shapes) == 5
    for index, path in enumerate(files.paths):
        np.testing.assert_array_equal(cache.read(index), read_image(path))
    assert not cache.read(1).flags.writeable


def put_sums(cache: ImageCache, results) -> None:
    results.put([int(cache.read(index).sum()) for index in range(len(cache.shapes))])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("ram", "spawn"), ("disk", "fork")])
def test_other_processes_read_the_same_bytes(files: LabeledFiles, tmp_path: Path, kind: str, method: str):
    cache = build(files, kind, tmp_path / "kept")
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=put_sums, args=(cache, results))
    process.start()
    sums = results.get(timeout=60)
    process.join(timeout=60)
    assert sums == [int(read_image(path).sum()) for path in files.paths]


def test_only_the_file_name_is_pickled(files: LabeledFiles, tmp_path: Path):
    made, arguments = build(files, "ram", tmp_path).__reduce__()
    assert made is ImageCache
    assert not [part for part in arguments if isinstance(part, np.ndarray) and part.dtype == np.uint8]


def test_memory_is_freed_with_the_cache(files: LabeledFiles, tmp_path: Path):
    cache = build(files, "ram", tmp_path)
    file = cache.pixels
    assert file.exists()
    del cache
    assert not file.exists()


def test_only_a_finished_cache_of_these_files_and_settings_is_opened(files: LabeledFiles, tmp_path: Path):
    assert open_cache(files, tmp_path / "kept", PREPARATION) is None
    build(files, "disk", tmp_path / "kept")
    assert open_cache(files, tmp_path / "kept", PREPARATION) is not None
    assert open_cache(files, tmp_path / "kept", "size=9") is None
    some = files.take(np.arange(4))
    assert open_cache(some, tmp_path / "kept", PREPARATION) is None
    build(some, "disk", tmp_path / "kept")  # as another split has
    assert open_cache(files, tmp_path / "kept", PREPARATION) is not None


def save(path: Path, color: str, width: int, mtime_ns: int) -> None:
    """Write an image whose file size follows from its own size alone, not from its colors."""
    Image.new("RGB", (width, 6), color).save(path, compress_level=0)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.mark.parametrize(
    ("width", "time_step_ns", "what_differs"),
    [(8, 0, {"num_bytes"}), (6, 1_000_000_000, {"mtime_ns"}), (8, 1_000_000_000, {"num_bytes", "mtime_ns"})],
)
def test_a_file_of_another_size_or_another_time_is_decoded_again_and_the_old_pixels_are_deleted(
    files: LabeledFiles, tmp_path: Path, width: int, time_step_ns: int, what_differs: set[str]
):
    path, mtime_ns = files.paths[2], int(files.mtime_ns[2])
    save(path, "red", 6, mtime_ns)
    before = listed(files.root)
    assert (build(before, "disk", tmp_path / "kept").read(2) == (255, 0, 0)).all()
    save(path, "blue", width, mtime_ns + time_step_ns)
    after = listed(files.root)
    columns = ("names", "num_bytes", "mtime_ns")
    assert {name for name in columns if not np.array_equal(getattr(before, name), getattr(after, name))} == what_differs
    cache = build(after, "disk", tmp_path / "kept")
    assert cache.read(2).shape == (6, width, 3)
    assert (cache.read(2) == (0, 0, 255)).all()
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 1


@pytest.mark.parametrize("suffix", [".npz", ".pixels"])
@pytest.mark.parametrize("end", [b"", b"other"], ids=["truncated", "overwritten"])
def test_a_damaged_cache_is_built_again(files: LabeledFiles, tmp_path: Path, suffix: str, end: bytes):
    build(files, "disk", tmp_path / "kept")
    (file,) = (tmp_path / "kept").glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:-5] + end)
    assert open_cache(files, tmp_path / "kept", PREPARATION) is None
    cache = build(files, "disk", tmp_path / "kept")
    np.testing.assert_array_equal(cache.read(4), read_image(files.paths[4]))


def test_a_cache_that_is_truncated_while_it_is_in_use_is_one_line_and_no_signal(files: LabeledFiles, tmp_path: Path):
    cache = build(files, "disk", tmp_path / "kept")
    os.truncate(cache.pixels, 0)
    with pytest.raises(DataError, match=r"\.pixels was truncated to 0 bytes while it was in use; start the run again"):
        cache.read(4)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_bad_image_is_named_with_its_class_and_nothing_is_left(files: LabeledFiles, tmp_path: Path, kind: str):
    files.paths[3].write_bytes(files.paths[3].read_bytes()[:40])
    with pytest.raises(DataError, match=rf"^an image of class 'bee': .*{files.paths[3].name} is damaged"):
        build(files, kind, tmp_path / "kept")
    assert not [file for file in tmp_path.glob("kept/*") if file.suffix != ".lock"]


def test_what_a_killed_process_left_is_removed(files: LabeledFiles, tmp_path: Path):
    build(files, "disk", tmp_path / "kept")
    (index,) = (tmp_path / "kept").glob("*.npz")
    left_over = index.with_name(f"{index.stem}.pixels.12345.part")
    left_over.write_bytes(b"half")
    index.unlink()
    build(files, "disk", tmp_path / "kept")
    assert not left_over.exists()


def test_a_directory_that_cannot_be_written_is_named_in_one_line(files: LabeledFiles, tmp_path: Path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(DataError, match=r"^data\.cache=disk: .*kept cannot be written \(.*\); data\.cache=none"):
        build(files, "disk", tmp_path / "kept")


def slow_build(files: LabeledFiles, directory: Path, decoded) -> None:
    def read(index: int) -> np.ndarray:
        with decoded.get_lock():
            decoded.value += 1
        return files.read(index, CLASS_NAMES)

    cache = build(files, "disk", directory, read=read)
    assert all(np.array_equal(cache.read(index), read_image(path)) for index, path in enumerate(files.paths))


def test_of_processes_that_start_at_once_one_decodes_and_the_others_wait(files: LabeledFiles, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    decoded = context.Value("i", 0)
    processes = [context.Process(target=slow_build, args=(files, tmp_path / "kept", decoded)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 3
    assert decoded.value == len(files)
