"""Decoded images are kept once, shared by every process, and never show anything but what decoding gives."""

import logging
import multiprocessing
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from imago.augment.resized_crop import limit_shorter_side
from imago.augment.settings import Augment
from imago.data import image_cache as store_module
from imago.data.dataset import FileDataset, LabeledFiles
from imago.data.image_cache import ImageStore, build_store, open_store
from imago.data.sampling import TrainSampler
from imago.errors import DataError
from imago.images import Preprocess, read_image, resize_and_crop

CLASS_NAMES = ("ant", "bee")
KEY = {"size": 8, "resize": 8, "crop": "center"}
SIZES = [(12, 9), (8, 8), (30, 5), (7, 20), (16, 16)]  # width, height


def as_is(pixels: np.ndarray) -> np.ndarray:
    return pixels


def listed(root: Path) -> LabeledFiles:
    paths = sorted(root.rglob("*.png"))
    facts = [path.stat() for path in paths]
    return LabeledFiles(
        root,
        tuple(str(path.relative_to(root)) for path in paths),
        np.array([fact.st_size for fact in facts], np.int64),
        np.array([fact.st_mtime_ns for fact in facts], np.int64),
        np.array([CLASS_NAMES.index(path.parent.name) for path in paths], np.int64),
    )


@pytest.fixture
def files(tmp_path: Path) -> LabeledFiles:
    """Five images of five shapes; one name is no valid UTF-8."""
    random = np.random.default_rng(0)
    for place, (width, height) in enumerate(SIZES):
        folder = tmp_path / "images" / CLASS_NAMES[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / (f"{place}.png" if place else os.fsdecode(b"caf\xe9.png")))
    return listed(tmp_path / "images")


def build(files: LabeledFiles, where: str, folder: Path, key: dict = KEY, prepare=as_is) -> ImageStore:
    return build_store(files, CLASS_NAMES, prepare, where, folder, key, num_threads=2)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self, index, class_names):
        raise AssertionError("decoded again")

    monkeypatch.setattr(LabeledFiles, "read", read)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_store_gives_the_pixels_that_decoding_gives(files: LabeledFiles, tmp_path: Path, where: str):
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


def test_many_images_keep_their_order(files: LabeledFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "_READ_AHEAD", 1)  # several rounds of the threads
    order = np.random.default_rng(1).integers(0, 5, 40)
    many = files.take(order)
    store = build(many, "ram", tmp_path)
    assert all(np.array_equal(store.read(place), read_image(many.paths[place])) for place in range(40))


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_what_is_written_into_a_image_does_not_reach_the_store(files: LabeledFiles, tmp_path: Path, where: str):
    store = build(files, where, tmp_path / "kept")
    elsewhere = ImageStore(store.pixels, store.shapes)
    before = store.read(1).copy()
    store.read(1)[:] = 0
    np.testing.assert_array_equal(elsewhere.read(1), before)


def give_sums(store: ImageStore, results) -> None:
    results.put([int(store.read(index).sum()) for index in range(len(store))])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("where", ["ram", "disk"])
def test_other_processes_read_the_same_bytes(files: LabeledFiles, tmp_path: Path, where: str, method: str):
    store = build(files, where, tmp_path / "kept")
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=give_sums, args=(store, results))
    process.start()
    sums = results.get(timeout=60)
    process.join(timeout=60)
    assert sums == [int(read_image(path).sum()) for path in files.paths]


def test_only_a_name_travels_to_other_processes(files: LabeledFiles, tmp_path: Path):
    made, arguments = build(files, "ram", tmp_path).__reduce__()
    assert made is ImageStore
    assert not [part for part in arguments if isinstance(part, np.ndarray) and part.dtype == np.uint8]


def test_memory_is_given_back_with_the_store(files: LabeledFiles, tmp_path: Path):
    store = build(files, "ram", tmp_path)
    place = store.pixels
    assert place.exists()
    del store
    assert not place.exists()


def test_a_second_run_decodes_nothing(files: LabeledFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = [image.copy() for store in [build(files, "disk", tmp_path / "kept")] for image in map(store.read, range(5))]
    forbid_decoding(monkeypatch)
    store = build(files, "disk", tmp_path / "kept")
    assert all(np.array_equal(store.read(index), image) for index, image in enumerate(first))


def test_only_a_finished_store_of_these_files_is_opened(files: LabeledFiles, tmp_path: Path):
    assert open_store(files, tmp_path / "kept", KEY) is None
    build(files, "disk", tmp_path / "kept")
    opened = open_store(files, tmp_path / "kept", KEY)
    assert opened is not None
    np.testing.assert_array_equal(opened.read(2), read_image(files.paths[2]))
    assert open_store(files, tmp_path / "kept", KEY | {"size": 9}) is None
    assert open_store(files.take(np.arange(4)), tmp_path / "kept", KEY) is None


def test_a_changed_file_is_decoded_again_and_the_old_pixels_go(
    files: LabeledFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    build(files, "disk", tmp_path / "kept")
    Image.new("RGB", (3, 4), "red").save(files.paths[3])
    changed = listed(files.root)
    with caplog.at_level(logging.INFO):
        store = build(changed, "disk", tmp_path / "kept")
    assert store.read(3).shape == (4, 3, 3)
    assert (store.read(3) == (255, 0, 0)).all()
    assert "decoding again: 1 images have changed since they were kept" in caplog.text
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 1


def save(path: Path, color: str, width: int, mtime_ns: int) -> None:
    """Write an image whose file size follows from its own size alone, not from its colors."""
    Image.new("RGB", (width, 6), color).save(path, compress_level=0)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.mark.parametrize(
    ("width", "time_step_ns", "what_differs"),
    [(8, 0, {"num_bytes"}), (6, 1_000_000_000, {"mtime_ns"}), (8, 1_000_000_000, {"num_bytes", "mtime_ns"})],
)
def test_a_file_of_another_size_or_another_time_is_decoded_again(
    files: LabeledFiles, tmp_path: Path, width: int, time_step_ns: int, what_differs: set[str]
):
    path, mtime_ns = files.paths[2], int(files.mtime_ns[2])
    save(path, "red", 6, mtime_ns)
    before = listed(files.root)
    assert (build(before, "disk", tmp_path / "kept").read(2) == (255, 0, 0)).all()
    save(path, "blue", width, mtime_ns + time_step_ns)
    after = listed(files.root)
    facts = ("names", "num_bytes", "mtime_ns")
    assert {name for name in facts if not np.array_equal(getattr(before, name), getattr(after, name))} == what_differs
    store = build(after, "disk", tmp_path / "kept")
    assert store.read(2).shape == (6, width, 3)
    assert (store.read(2) == (0, 0, 255)).all()
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 1  # the old pixels are gone


def test_a_file_of_the_same_size_but_another_time_counts_as_changed(files: LabeledFiles, tmp_path: Path):
    build(files, "disk", tmp_path / "kept")
    touched = replace(files, mtime_ns=files.mtime_ns + np.array([0, 0, 1, 0, 0]))
    assert open_store(touched, tmp_path / "kept", KEY) is None


def test_another_preprocess_is_decoded_again_and_says_so(
    files: LabeledFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    build(files, "disk", tmp_path / "kept")
    with caplog.at_level(logging.INFO):
        build(files, "disk", tmp_path / "kept", KEY | {"size": 9})
    assert 'prepared otherwise ({"crop": "center", "resize": 8, "schema": 1, "size": 8})' in caplog.text


def test_what_another_split_kept_stays(files: LabeledFiles, tmp_path: Path):
    build(files.take(np.arange(3)), "disk", tmp_path / "kept")
    build(files.take(np.arange(1, 5)), "disk", tmp_path / "kept")
    assert open_store(files.take(np.arange(3)), tmp_path / "kept", KEY) is not None


@pytest.mark.parametrize("suffix", [".npz", ".pixels"])
def test_a_truncated_store_is_built_again(files: LabeledFiles, tmp_path: Path, suffix: str):
    build(files, "disk", tmp_path / "kept")
    (file,) = (tmp_path / "kept").glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:-5])
    assert open_store(files, tmp_path / "kept", KEY) is None
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


def test_a_folder_that_cannot_be_written_is_told_in_one_line(files: LabeledFiles, tmp_path: Path):
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


def its_own_batch(batch):
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
def test_no_place_and_no_number_of_workers_changes_a_pixel(files: LabeledFiles, tmp_path: Path, prepare, augment):
    def batches(store: ImageStore | None, num_workers: int) -> list[torch.Tensor]:
        dataset = FileDataset(files, CLASS_NAMES, 8, prepare, augment, 3, store)
        sampler = TrainSampler(len(files), 2, 3)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=its_own_batch, num_workers=num_workers)
        return [part for batch in loader for part in batch]

    expected = batches(None, 0)
    stores = [None, *(build(files, where, tmp_path / "kept", prepare=prepare) for where in ("ram", "disk"))]
    for store in stores:
        for num_workers in (0, 2):
            found = batches(store, num_workers)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
