"""Datasets in litdata's chunk format: class names, splits, order, and the same weights however they are read."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunked_sets import Store, drawn_samples, s3_store, upload, write_set
from drawn_images import photo

from imago.data import chunks
from imago.data.dataset import concatenate
from imago.data.folder_listing import list_image_folder
from imago.data.litdata_datamodule import LitDataModule
from imago.dataset_check.check import examine_dataset
from imago.errors import ConfigError, DataError
from imago.inference.run_split import images_digest, images_in_memory

NAMES = ["ant", "bee", "cat"]


def module(root: Path | str, tmp_path: Path, **settings: Any) -> LitDataModule:
    defaults = {"batch_size": 8, "num_workers": 0, "augment": {}, "seed": 0, "test_fraction": 0.2, "val_fraction": 0.2}
    own = {"cache_dir": str(tmp_path / "cache"), "cache_gb": 1, "shuffle_window": 2, "max_pixels": 10_000}
    data = LitDataModule(str(root), **(defaults | own | settings))
    data.set_up_data()
    return data


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples of 3 classes in 10 chunks, without imago.json."""
    return write_set(tmp_path_factory.mktemp("plain"), drawn_samples(60))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits of 36, 12 and 18 samples, with imago.json."""
    root = tmp_path_factory.mktemp("published")
    for split, size in (("train", 36), ("val", 12), ("test", 18)):
        labels = [index % 3 for index in range(size)]
        write_set(root / split, drawn_samples(size), sidecar={"class_names": NAMES, "labels": labels})
    return root


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with s3_store() as server:
        yield server


def all_batches(data: LitDataModule, epoch: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return list(loader)


# Classes and splits


def test_without_imago_json_labels_are_read_and_numbers_name_the_classes(plain: Path, tmp_path: Path):
    data = module(plain, tmp_path)
    assert data.class_names == ("0", "1", "2")
    images = concatenate([split for _, split in data.splits.items()])
    assert sorted(images.positions) == list(range(60))  # type: ignore[attr-defined]
    assert images.labels.tolist() == [position % 3 for position in images.positions]  # type: ignore[attr-defined]
    position = int(data.splits.val.positions[4])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(data.splits.val.read(4), photo(position, 12))


def test_published_splits_and_listed_names_are_kept_without_opening_a_chunk(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chunks.ChunkFiles, "fetch", None)
    data = module(published, tmp_path)
    assert data.class_names == ("ant", "bee", "cat")
    assert [len(split) for _, split in data.splits.items()] == [36, 12, 18]
    assert data.splits.test.names[7] == "test/chunk-0-1/00001"
    assert data.random_splits == []


def test_folds_and_a_split_file_work_as_with_files(published: Path, plain: Path, tmp_path: Path):
    data = module(published, tmp_path, fold=1, num_folds=4)
    assert [len(split) for _, split in data.splits.items()] == [36, 12, 18]
    assert {name.partition("/")[0] for name in data.splits.val.names} == {"train", "val"}
    first = module(plain, tmp_path)
    first.write_split(tmp_path)
    again = module(plain, tmp_path, split_file=str(tmp_path / "split.csv"), split_seed=5)
    for (_, expected), (_, found) in zip(first.splits.items(), again.splits.items(), strict=True):
        assert sorted(expected.names) == sorted(found.names)


def test_the_drawn_test_split_is_stratified_and_does_not_depend_on_val(plain: Path, tmp_path: Path):
    tests = [module(plain, tmp_path, val_fraction=share).splits.test for share in (0.1, 0.3)]
    assert np.bincount(tests[0].labels).tolist() == [4, 4, 4]
    assert tests[0].names == tests[1].names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "balanced"}, "data.sampler=balanced needs all chunks at once; loss.weight=balanced does not"),
        ({"shuffle_window": 0}, "data.shuffle_window=0 must be 1 or more"),
        ({"group_pattern": "(.)"}, "data.group_pattern="),
    ],
)
def test_settings_that_cannot_work_are_refused(plain: Path, tmp_path: Path, settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        module(**({"root": plain, "tmp_path": tmp_path} | settings))


def test_labels_that_are_out_of_range_are_refused(tmp_path: Path):
    samples = drawn_samples(30)
    for number, (label, sidecar, message) in enumerate(
        [
            (-1, None, "labels from -1 to 2"),
            (10**12, None, "labels from 0 to 1000000000000; with 30 classes they must be in 0 .. 29"),
            (7, {"class_names": NAMES}, "labels from 0 to 7; with 3 classes they must be in 0 .. 2"),
            (7, {"class_names": NAMES, "labels": [index % 3 for index in range(29)] + [7]}, "with 3 classes"),
            (1, {"labels": [0, 1]}, "imago.json has 2 labels"),
            (1, {"labels": ["ant"] * 30}, "ValueError"),
            (1, {"class_names": ["ant", "ant", "bee"]}, "'ant' and 'ant' look the same"),
        ]
    ):
        root = write_set(tmp_path / str(number), [*samples[:29], (samples[29][0], label)], sidecar=sidecar)
        with pytest.raises(DataError, match=message):
            module(root, tmp_path)


def test_splits_with_other_class_names_are_refused(tmp_path: Path):
    for split, names in (("train", NAMES), ("val", NAMES[::-1])):
        write_set(tmp_path / split, drawn_samples(12), sidecar={"class_names": names})
    with pytest.raises(DataError, match="the splits have different class_names"):
        module(tmp_path, tmp_path)


# Order and batches


@pytest.mark.parametrize("augment", [{}, {"random_resized_crop_scale": [0.5, 1.0], "flip_probability": 0.5}])
def test_batches_do_not_depend_on_the_number_of_workers(plain: Path, tmp_path: Path, augment: dict):
    expected = all_batches(module(plain, tmp_path, augment=augment), epoch=3)
    found = all_batches(module(plain, tmp_path, augment=augment, num_workers=2), epoch=3)
    assert len(expected) == 4
    for (images, labels), (other_images, other_labels) in zip(expected, found, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_evaluation_reads_every_image_once_in_order(plain: Path, tmp_path: Path):
    data = module(plain, tmp_path)
    batches = list(data.evaluation_loader("test"))
    images = torch.cat([images for images, _ in batches]).numpy().transpose(0, 2, 3, 1)
    for pixels, position in zip(images, data.splits.test.positions, strict=True):  # type: ignore[attr-defined]
        np.testing.assert_array_equal(pixels, photo(int(position), 12))


def test_a_damaged_image_is_one_line_also_from_a_worker(tmp_path: Path):
    samples = drawn_samples(60)
    samples[33] = (b"\x89PNG\r\n\x1a\n", samples[33][1])
    for num_workers in (0, 2):
        data = module(write_set(tmp_path / str(num_workers), samples), tmp_path, num_workers=num_workers)
        split = next(name for name, part in data.splits.items() if 33 in part.positions)  # type: ignore[attr-defined]
        with pytest.raises(DataError, match=r"image chunk-0-5/00003 of .* is damaged"):
            list(data.evaluation_loader(split))


def test_mean_and_std_are_those_of_the_images_of_a_few_chunks(plain: Path, tmp_path: Path):
    data = module(plain, tmp_path)
    positions = data.splits.train.positions  # type: ignore[attr-defined]
    chosen = positions[np.isin(positions // 6, range(0, 10, 2))]  # every second chunk of ten
    pixels = np.stack([photo(int(position), 12) for position in chosen]) / 255
    np.testing.assert_allclose(data.preprocess.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(data.preprocess.std, pixels.std(axis=(0, 1, 2)), atol=1e-6)
    assert data.preprocess.size == 12


# What others read of it


def test_the_fingerprint_changes_with_index_splits_and_class_names(plain: Path, tmp_path: Path):
    data = module(plain, tmp_path)
    same = module(plain, tmp_path, seed=5)
    others = [
        module(plain, tmp_path, split_seed=1),
        module(write_set(tmp_path / "again", drawn_samples(60), updated=2), tmp_path),
        module(write_set(tmp_path / "named", drawn_samples(60), sidecar={"class_names": NAMES}), tmp_path),
    ]
    assert same.fingerprint() == data.fingerprint()
    assert len({module.fingerprint() for module in (data, *others)}) == 4


def test_images_are_shown_hashed_and_checked(plain: Path, tmp_path: Path):
    data = module(plain, tmp_path)
    test = data.splits.test
    shown = images_in_memory(test, [2])[2]
    assert shown.shape == (128, 128, 3)
    assert images_digest(test, data.class_names) == images_digest(
        test.take(np.arange(len(test))[::-1]), data.class_names
    )
    assert images_digest(test, data.class_names) != images_digest(test.take(np.arange(5)), data.class_names)
    checked = examine_dataset(data, tmp_path)
    assert len(checked) == 60
    assert checked.examined.records["width"].tolist() == [12] * 60
    assert checked.examined.errors == ("",) * 60


# The start table


def note(tmp_path: Path, num_samples: int, num_classes: int, is_sorted: bool, window: int) -> str:
    samples = drawn_samples(num_samples, num_classes, is_sorted)
    root = tmp_path / f"{num_samples}-{num_classes}-{is_sorted}"
    for split, part in (("train", samples), ("val", samples), ("test", samples)):
        write_set(root / split, part, per_chunk=5)
    return module(root, tmp_path, shuffle_window=window).shuffle_note()


def test_windows_of_few_classes_are_warned_of_with_a_window_that_cures_it(tmp_path: Path):
    assert note(tmp_path, 200, 4, False, 2) == "windows of 2 of 40 chunks have 4 classes or more"
    text = note(tmp_path, 200, 10, True, 2)
    assert text.startswith("windows of 2 of 40 chunks have 2 classes or more; WARNING: fewer than half of them; data.")
    window = int(text.partition("data.shuffle_window=")[2].split()[0])
    assert 16 <= window <= 40
    assert text.endswith(f"data.shuffle_window={window} has them about as often as the dataset")
    assert "have 10 classes or more" in note(tmp_path, 200, 10, True, window)
    assert "WARNING" not in note(tmp_path, 200, 10, True, window)


# From a store


def test_an_epoch_downloads_each_chunk_once_into_a_cache_of_two_windows(
    plain: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = upload(store, plain, prefix="plain")
    local = module(plain, tmp_path)
    sizes = sorted((chunk.num_bytes for chunk in local.files.chunks), reverse=True)
    data = module(root, tmp_path, cache_gb=sum(sizes[:4]) / 1e9)
    assert data.fill_cache(1, 2).endswith("GB")
    assert data.fingerprint() == local.fingerprint()
    assert data.preprocess == local.preprocess
    store.requests.clear()
    for path in (tmp_path / "cache").rglob("*.bin"):
        path.unlink()
    expected, found = all_batches(local, 1), all_batches(data, 1)
    for (images, labels), (other_images, other_labels) in zip(expected, found, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    counts = {name: count for (method, name), count in store.requests.items() if method == "GET"}
    assert set(counts.values()) == {1}
    assert len(counts) >= 9  # the last, incomplete batch is dropped


def test_a_rank_downloads_only_the_chunks_of_its_own_samples(plain: Path, store: Store, tmp_path: Path):
    root = upload(store, plain, prefix="ranks")
    opened = []
    for rank in range(2):
        data = module(root, tmp_path / str(rank), shuffle_window=1)
        data._rank = partial(tuple, (rank, 2))  # type: ignore[method-assign]
        assert data.preprocess.size == 12  # from images of every second chunk
        for path in (tmp_path / str(rank)).rglob("*.bin"):
            path.unlink()
        store.requests.clear()
        all_batches(data)
        opened.append({name for method, name in store.requests if method == "GET" and name.endswith(".bin")})
    assert len(opened[0] & opened[1]) <= 1
    assert len(opened[0] | opened[1]) >= 9


def test_a_cache_of_less_than_two_windows_is_refused(plain: Path, store: Store, tmp_path: Path):
    data = module(upload(store, plain, prefix="small"), tmp_path, cache_gb=1e-6)
    with pytest.raises(ConfigError, match=r"data.cache_gb=1e-06: two windows .data.shuffle_window=2. need"):
        data.fill_cache(1, 2)
    assert module(plain, tmp_path, cache_gb=1e-9).fill_cache(1, 2) == f"none: chunks are read from {plain}"


@pytest.mark.parametrize("root", ["gs://bucket/set", "s3:/bucket/set", "https://host/set"])
def test_other_addresses_are_refused(root: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"^data.root={root}: chunks are read from a directory or from s3://BUCKET"):
        module(root, tmp_path)


def test_a_folder_of_images_and_a_folder_of_chunks_are_told_apart(tmp_path: Path, plain: Path):
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match=r"index.json cannot be read: .*; for folders of images type data=image_folder"):
        module(tmp_path / "photos", tmp_path)
    with pytest.raises(DataError, match=r"has an index.json: if it is one of litdata, type data=litdata"):
        list_image_folder(plain)
