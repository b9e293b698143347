"""Decoded images are kept where they fit, once, shared by every process, and equal to what decoding returns."""

import logging
import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from imago.augment.resized_crop import limit_shorter_side
from imago.augment.settings import Augment
from imago.data import image_cache
from imago.data.dataset import FileDataset, LabeledFiles
from imago.data.image_cache import ImageCache, build_cache, choose_cache, estimate_bytes, open_cache
from imago.data.sampling import TrainSampler
from imago.errors import ConfigError, DataError
from imago.images import Preprocess, read_image, resize_and_crop

CLASS_NAMES = ("ant", "bee")
KEY = {"size": 8, "resize": 8, "crop": "center"}
SIZES = [(12, 9), (8, 8), (30, 5), (7, 20), (16, 16)]  # width, height
GIB = 2**30
FOLDER = Path("data/cache")


def as_is(pixels: np.ndarray) -> np.ndarray:
    return pixels


def listed(root: Path) -> LabeledFiles:
    paths = sorted(root.rglob("*.png"))
    stats = [path.stat() for path in paths]
    return LabeledFiles(
        root,
        tuple(str(path.relative_to(root)) for path in paths),
        np.array([stat.st_size for stat in stats], np.int64),
        np.array([stat.st_mtime_ns for stat in stats], np.int64),
        np.array([CLASS_NAMES.index(path.parent.name) for path in paths], np.int64),
    )


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
    monkeypatch.setattr(image_cache, "free_disk_bytes", lambda folder: 100 * GIB)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("mode", "gibibytes", "num_processes", "kept", "chosen"),
    [
        ("none", 1, 1, 0, "none"),
        ("ram", 10, 1, 0, "ram"),
        ("ram", 5, 2, 0, "ram"),
        ("disk", 100, 1, 0, "disk"),
        ("disk", 300, 1, 250, "disk"),  # most of it exists already
        ("auto", 5, 1, 0, "ram"),
        ("auto", 6, 1, 0, "disk"),
        ("auto", 3, 2, 0, "disk"),  # every process would keep its own
        ("auto", 50, 4, 0, "disk"),  # on disk they share
        ("auto", 51, 1, 0, "none"),
        ("auto", 5, 1, 5, "disk"),  # nothing remains to decode
        ("auto", 300, 1, 300, "disk"),
    ],
)
def test_images_are_kept_where_they_fit(mode: str, gibibytes: int, num_processes: int, kept: int, chosen: str):
    assert choose_cache(mode, gibibytes * GIB, FOLDER, num_processes, kept * GIB)[0] == chosen


@pytest.mark.usefixtures("machine")
def test_the_reason_is_returned_with_its_numbers():
    assert choose_cache("auto", 512 * 2**20, FOLDER, 2)[1] == "1.0 GiB of 10.0 GiB available"
    assert choose_cache("auto", 8 * GIB, FOLDER, 1)[1] == "8.0 GiB of 100.0 GiB available"
    assert choose_cache("auto", 8 * GIB, FOLDER, 1, 8 * GIB)[1] == "8.0 GiB, kept in data/cache by an earlier run"
    assert choose_cache("ram", 3 * 2**20, FOLDER, 1)[1] == "3.0 MiB, as typed"
    assert choose_cache("auto", 60 * GIB, FOLDER, 1)[1] == (
        "60.0 GiB are over half of the 10.0 GiB of memory and 100.0 GiB of disk; a lower data.decoded_px or "
        "preprocess.size makes them smaller"
    )


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("mode", "gibibytes", "text"),
    [
        ("ram", 11, r"^data\.cache=ram: .* need 11\.0 GiB, and memory has 10\.0 GiB available; data\.cache=disk keeps"),
        ("disk", 101, r"^data\.cache=disk: .* need 101\.0 GiB, and data/cache has 100\.0 GiB .*; data\.cache=none"),
        ("floppy", 1, r"^data\.cache=floppy is not one of none, ram, disk, auto\.$"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(mode: str, gibibytes: int, text: str):
    with pytest.raises(ConfigError, match=text) as error:
        choose_cache(mode, gibibytes * GIB, FOLDER, 1)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("machine")
def test_without_files_in_memory_the_disk_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("os.memfd_create")
    assert choose_cache("auto", GIB, FOLDER, 1)[0] == "disk"
    with pytest.raises(ConfigError, match=r"^data\.cache=ram"):
        choose_cache("ram", GIB, FOLDER, 1)


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


# ImageCache, build_cache and open_cache


def build(files: LabeledFiles, where: str, folder: Path, key: dict = KEY, prepare=as_is) -> ImageCache:
    return build_cache(files, CLASS_NAMES, prepare, where, folder, key, num_threads=2)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self, index, class_names):
        raise AssertionError("decoded again")

    monkeypatch.setattr(LabeledFiles, "read", read)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_store_returns_the_pixels_that_decoding_returns(files: LabeledFiles, tmp_path: Path, where: str):
    store = build(files, where, tmp_path / "kept")
    assert len(store) == 5
    assert store.num_bytes == sum(width * height * 3 for width, height in SIZES)
    for index, path in enumerate(files.paths):
        np.testing.assert_array_equal(store.read(index), read_image(path))


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_images_are_kept_as_they_were_prepared(files: LabeledFiles, tmp_path: Path, where: str):
    square = partial(resize_and_crop, preprocess=Preprocess(8, 8, "center", (0.0,) * 3, (1.0,) * 3))
    store = build(files, where, tmp_path / "kept", prepare=square)
    for index, path in enumerate(files.paths):
        np.testing.assert_array_equal(store.read(index), square(read_image(path)))


def test_images_keep_their_order_over_several_rounds_of_the_threads(files: LabeledFiles, tmp_path: Path):
    order = np.random.default_rng(1).integers(0, 5, 40)
    many = files.take(order)
    store = build(many, "ram", tmp_path)
    assert all(np.array_equal(store.read(index), read_image(many.paths[index])) for index in range(40))


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_changes_to_an_image_do_not_reach_the_store(files: LabeledFiles, tmp_path: Path, where: str):
    store = build(files, where, tmp_path / "kept")
    elsewhere = ImageCache(store.pixels, store.shapes)
    before = store.read(1).copy()
    store.read(1)[:] = 0
    np.testing.assert_array_equal(elsewhere.read(1), before)


def put_sums(store: ImageCache, results) -> None:
    results.put([int(store.read(index).sum()) for index in range(len(store))])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("where", ["ram", "disk"])
def test_other_processes_read_the_same_bytes(files: LabeledFiles, tmp_path: Path, where: str, method: str):
    store = build(files, where, tmp_path / "kept")
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=put_sums, args=(store, results))
    process.start()
    sums = results.get(timeout=60)
    process.join(timeout=60)
    assert sums == [int(read_image(path).sum()) for path in files.paths]


def test_only_the_file_name_is_pickled(files: LabeledFiles, tmp_path: Path):
    made, arguments = build(files, "ram", tmp_path).__reduce__()
    assert made is ImageCache
    assert not [part for part in arguments if isinstance(part, np.ndarray) and part.dtype == np.uint8]


def test_memory_is_freed_with_the_store(files: LabeledFiles, tmp_path: Path):
    store = build(files, "ram", tmp_path)
    file = store.pixels
    assert file.exists()
    del store
    assert not file.exists()


def test_a_second_run_decodes_nothing(files: LabeledFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = [image.copy() for store in [build(files, "disk", tmp_path / "kept")] for image in map(store.read, range(5))]
    forbid_decoding(monkeypatch)
    store = build(files, "disk", tmp_path / "kept")
    assert all(np.array_equal(store.read(index), image) for index, image in enumerate(first))


def test_only_a_finished_store_of_these_files_is_opened(files: LabeledFiles, tmp_path: Path):
    assert open_cache(files, tmp_path / "kept", KEY) is None
    build(files, "disk", tmp_path / "kept")
    opened = open_cache(files, tmp_path / "kept", KEY)
    assert opened is not None
    np.testing.assert_array_equal(opened.read(2), read_image(files.paths[2]))
    assert open_cache(files, tmp_path / "kept", KEY | {"size": 9}) is None
    assert open_cache(files.take(np.arange(4)), tmp_path / "kept", KEY) is None


def save(path: Path, color: str, width: int, mtime_ns: int) -> None:
    """Write an image whose file size follows from its own size alone, not from its colors."""
    Image.new("RGB", (width, 6), color).save(path, compress_level=0)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.mark.parametrize(
    ("width", "time_step_ns", "what_differs"),
    [(8, 0, {"num_bytes"}), (6, 1_000_000_000, {"mtime_ns"}), (8, 1_000_000_000, {"num_bytes", "mtime_ns"})],
)
def test_a_file_of_another_size_or_another_time_is_decoded_again_and_the_old_pixels_are_deleted(
    files: LabeledFiles, tmp_path: Path, caplog, width: int, time_step_ns: int, what_differs: set[str]
):
    caplog.set_level(logging.INFO)
    path, mtime_ns = files.paths[2], int(files.mtime_ns[2])
    save(path, "red", 6, mtime_ns)
    before = listed(files.root)
    assert (build(before, "disk", tmp_path / "kept").read(2) == (255, 0, 0)).all()
    save(path, "blue", width, mtime_ns + time_step_ns)
    after = listed(files.root)
    columns = ("names", "num_bytes", "mtime_ns")
    assert {name for name in columns if not np.array_equal(getattr(before, name), getattr(after, name))} == what_differs
    store = build(after, "disk", tmp_path / "kept")
    assert store.read(2).shape == (6, width, 3)
    assert (store.read(2) == (0, 0, 255)).all()
    assert "decoding again: 1 images have changed since they were cached" in caplog.text
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 1


def test_another_preprocess_is_decoded_again_with_a_log_message(
    files: LabeledFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    build(files, "disk", tmp_path / "kept")
    with caplog.at_level(logging.INFO):
        build(files, "disk", tmp_path / "kept", KEY | {"size": 9})
    assert 'made with other settings ({"crop": "center", "resize": 8, "schema": 1, "size": 8})' in caplog.text


def test_the_images_of_another_split_stay(files: LabeledFiles, tmp_path: Path):
    build(files.take(np.arange(3)), "disk", tmp_path / "kept")
    build(files.take(np.arange(1, 5)), "disk", tmp_path / "kept")
    assert open_cache(files.take(np.arange(3)), tmp_path / "kept", KEY) is not None


@pytest.mark.parametrize("suffix", [".npz", ".pixels"])
def test_a_truncated_store_is_built_again(files: LabeledFiles, tmp_path: Path, suffix: str):
    build(files, "disk", tmp_path / "kept")
    (file,) = (tmp_path / "kept").glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:-5])
    assert open_cache(files, tmp_path / "kept", KEY) is None
    store = build(files, "disk", tmp_path / "kept")
    np.testing.assert_array_equal(store.read(4), read_image(files.paths[4]))


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_bad_image_is_named_with_its_class_and_nothing_is_left(files: LabeledFiles, tmp_path: Path, where: str):
    files.paths[3].write_bytes(files.paths[3].read_bytes()[:40])
    with pytest.raises(DataError, match=rf"^an image of class 'bee': .*{files.paths[3].name} is damaged"):
        build(files, where, tmp_path / "kept")
    assert not [file for file in tmp_path.glob("kept/*") if file.suffix != ".lock"]


def test_what_a_killed_process_left_is_removed(files: LabeledFiles, tmp_path: Path):
    build(files, "disk", tmp_path / "kept")
    (index,) = (tmp_path / "kept").glob("*.npz")
    left_over = index.with_name(f"{index.stem}.pixels.12345.part")
    left_over.write_bytes(b"half")
    index.unlink()
    build(files, "disk", tmp_path / "kept")
    assert not left_over.exists()


def test_a_folder_that_cannot_be_written_is_named_in_one_line(files: LabeledFiles, tmp_path: Path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(DataError, match=r"^data\.cache=disk: .*kept cannot be written \(.*\); data\.cache=none"):
        build(files, "disk", tmp_path / "kept")


def slow_build(files: LabeledFiles, folder: Path, decoded) -> None:
    def prepare(pixels: np.ndarray) -> np.ndarray:
        with decoded.get_lock():
            decoded.value += 1
        return pixels

    store = build(files, "disk", folder, prepare=prepare)
    assert all(np.array_equal(store.read(index), read_image(path)) for index, path in enumerate(files.paths))


def test_of_processes_that_start_at_once_one_decodes_and_the_others_wait(files: LabeledFiles, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    decoded = context.Value("i", 0)
    processes = [context.Process(target=slow_build, args=(files, tmp_path / "kept", decoded)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert decoded.value == len(files)


SQUARE = partial(resize_and_crop, preprocess=Preprocess(8, 8, "center", (0.0,) * 3, (1.0,) * 3))
SHRUNK = partial(limit_shorter_side, most_px=6)


def identity(batch):
    return batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "augment"),
    [
        (SQUARE, Augment(crop_padding_px=1, flip_probability=0.5)),
        (as_is, Augment(flip_probability=0.5, random_resized_crop_scale=(0.3, 1.0))),
        (SHRUNK, Augment(flip_probability=0.5, random_resized_crop_scale=(0.3, 1.0))),
        (SQUARE, None),
    ],
)
def test_neither_the_store_nor_the_number_of_workers_changes_a_pixel(
    files: LabeledFiles, tmp_path: Path, prepare, augment
):
    def batches(store: ImageCache | None, num_workers: int) -> list[torch.Tensor]:
        dataset = FileDataset(files, CLASS_NAMES, 8, prepare, augment, 3, store)
        sampler = TrainSampler(len(files), 2, 3)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=identity, num_workers=num_workers)
        return [part for batch in loader for part in batch]

    expected = batches(None, 0)
    stores = [None, *(build(files, where, tmp_path / "kept", prepare=prepare) for where in ("ram", "disk"))]
    for store in stores:
        for num_workers in (0, 2):
            found = batches(store, num_workers)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
