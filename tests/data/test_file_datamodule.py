"""Datasets of image files: splits, preprocessing, batches, unreadable images, split files, CSV lists."""

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imago.data.file_datamodule import FileDataModule, ImageFolderDataModule, ImageListDataModule
from imago.data.sampling import BatchIndices
from imago.errors import ConfigError, DataError
from imago.images import read_image, resize_and_crop

STANDARD = {"random_resized_crop_scale": [0.35, 1.0], "flip_probability": 0.5}


def noise(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Save an image of random pixels; `size` is width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (12, 12)) -> Path:
    """Fill folders such as `train/cat` with that many images, no two alike."""
    seed = 0
    for name, count in counts.items():
        for index in range(count):
            noise(root / name / f"{index:02d}.png", size, seed := seed + 1)
    return root


def settings_of(directory: Path, **settings) -> dict:
    split = {"val_fraction": 0.2, "test_fraction": 0.1, "cache": "none", "cache_dir": str(directory / "cache")}
    return split | {"batch_size": 8, "num_workers": 0, "augment": {}, "seed": 0} | settings


def module(root: Path, **settings) -> ImageFolderDataModule:
    data = ImageFolderDataModule(root=str(root), **settings_of(root.parent, **settings))
    data.set_up_data()
    return data


def listed(list_file: Path, **settings) -> ImageListDataModule:
    data = ImageListDataModule(str(list_file), **settings_of(list_file.parent, **settings))
    data.set_up_data()
    return data


def names(data: FileDataModule) -> dict[str, set[str]]:
    return {split: set(files.names) for split, files in data.splits.items()}


def counts(data: FileDataModule) -> dict[str, list[int]]:
    return {split: np.bincount(files.labels, minlength=2).tolist() for split, files in data.splits.items()}


def everything(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of small images that no test changes."""
    return folder(tmp_path_factory.mktemp("squares") / "set", {"ant": 12, "bee": 12})


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images that are too large to keep their size, which no test changes."""
    return folder(tmp_path_factory.mktemp("photographs") / "set", {"ant": 12, "bee": 12}, size=(70, 66))


# Splits


VAL_ONLY = {"train/ant": 20, "train/bee": 10, "val/ant": 3, "val/bee": 2}


@pytest.mark.parametrize(
    ("num_images", "settings", "expected", "message"),
    [
        (
            {"ant": 10, "bee": 20},
            {},
            {"train": [7, 14], "val": [2, 4], "test": [1, 2]},
            "split off the 30 training images, stratified: 3 for test and 6 for val\n",
        ),
        (
            {"train/ant": 5, "train/bee": 4, "val/ant": 3, "val/bee": 2, "test/bee": 2},
            {},
            {"train": [5, 4], "val": [3, 2], "test": [0, 2]},
            "test has no images of ant, so it does not measure their recall\n",
        ),
        (
            VAL_ONLY,
            {},
            {"train": [18, 9], "val": [3, 2], "test": [2, 1]},
            "training images, stratified: 3 for test; data.val_as_test=true tests on val instead\n",
        ),
        (VAL_ONLY, {"val_as_test": True}, {"train": [16, 8], "val": [4, 2], "test": [3, 2]}, "6 for val\n"),
        (
            {"training/ant": 10, "training/bee": 10, "testing/ant": 2, "testing/bee": 2},
            {},
            {"train": [8, 8], "val": [2, 2], "test": [2, 2]},
            "4 for val\n",
        ),
    ],
    ids=["classes alone", "all three", "without test", "val as test", "without val"],
)
def test_folders_become_splits_and_missing_ones_are_split_off_train(
    tmp_path: Path, caplog, num_images: dict, settings: dict, expected: dict[str, list[int]], message: str
):
    with caplog.at_level(logging.INFO):
        data = module(folder(tmp_path, num_images), **settings)
    assert data.class_names == ("ant", "bee")
    assert counts(data) == expected
    assert len(set.union(*names(data).values())) == sum(num_images.values())
    assert caplog.text.endswith(message) if message else caplog.text == ""


@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to], ids=["hard link", "link"])
def test_a_test_file_with_a_second_name_among_the_training_images_stays_a_test_image(tmp_path: Path, link):
    folder(tmp_path, {"train/ant": 6, "train/bee": 6, "val/ant": 1, "test/ant": 2, "test/bee": 2})
    link(tmp_path / "train" / "ant" / "again.png", tmp_path / "test" / "ant" / "00.png")
    data = module(tmp_path)
    assert counts(data) == {"train": [6, 6], "val": [1, 0], "test": [2, 2]}
    assert data.ignored_entries == [("train/ant/again.png", "same file as test/ant/00.png")]


def test_a_class_folder_with_the_name_of_a_split_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        data = module(folder(tmp_path, {"ant": 10, "bee": 10, "test": 10}))
    assert data.class_names == ("ant", "bee", "test")
    assert re.search("as classes, not as splits.*: test/", caplog.text)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"decoded_px": 0}, "data.decoded_px=0 must be 1 or more"),
        ({"cache": "rma"}, "data.cache=rma is not one of none, ram, disk, auto"),
        ({"on_bad_image": "ignore"}, "data.on_bad_image=ignore is not one of error, skip"),
        ({"sampler": "weighted"}, "data.sampler=weighted is not one of shuffle, balanced"),
        ({"val_fraction": 0.0}, "data.val_fraction=0.0 and data.test_fraction=0.1 must be greater than 0"),
    ],
)
def test_invalid_settings_are_refused_before_any_data_is_read(settings: dict, fault: str):
    with pytest.raises(ConfigError, match=fault):
        module(Path("/nowhere"), **settings)


# Split files and folds


def test_a_drawn_split_is_written_and_read_back_whatever_the_seed(squares: Path, tmp_path: Path):
    first = module(squares)
    first.write_split(tmp_path)
    again = module(squares, split_file=str(tmp_path / "split.csv"), split_seed=7)
    assert names(again) == names(first)
    assert again.fingerprint() == first.fingerprint()


def test_published_splits_are_not_written_and_neither_is_an_empty_list_of_bad_images(tmp_path: Path):
    root = folder(tmp_path / "set", {"train/ant": 4, "train/bee": 4, "val/bee": 1, "test/bee": 1})
    module(root, on_bad_image="skip").write_split(tmp_path)
    assert not list(tmp_path.glob("*.csv"))


def test_a_split_file_without_training_images_of_a_class_is_refused(squares: Path, tmp_path: Path):
    module(squares).write_split(tmp_path)
    lines = (tmp_path / "split.csv").read_text().splitlines()
    (tmp_path / "split.csv").write_text("\n".join(line for line in lines if not line.endswith("bee,train")) + "\n")
    with pytest.raises(DataError, match="data.split_file=.* has no training images of class 'bee'"):
        module(squares, split_file=str(tmp_path / "split.csv"))


# Preprocess


@pytest.mark.parametrize(("size", "side"), [((20, 20), 20), ((64, 48), 48), ((100, 70), 224)])
def test_mean_and_std_are_those_of_the_training_images_as_evaluated(
    tmp_path: Path, size: tuple[int, int], side: int, caplog: pytest.LogCaptureFixture
):
    data = module(folder(tmp_path, {"ant": 6, "bee": 6}, size=size))
    with caplog.at_level(logging.INFO):
        assert data.preprocess.size == side
    key = BatchIndices(0, np.arange(len(data.splits.train)))
    batch = data.dataset("train").__getitems__(key)
    images, _ = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert f"mean and std from {len(data.splits.train)} training images" in caplog.text


def test_mean_and_std_of_many_images_or_large_files_are_computed_from_fewer_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    data = module(folder(tmp_path, {"ant": 30, "bee": 30}, size=(4, 4)))
    size = data.splits.train.num_bytes.max()
    for limit_bytes, most, num_images in ((30 * size, 512, 30), (0, 512, 16), (100 * size, 20, 20)):
        monkeypatch.setattr("imago.data.file_datamodule.MAX_STATISTICS_BYTES", limit_bytes)
        monkeypatch.setattr("imago.data.file_datamodule.MAX_STATISTICS_IMAGES", most)
        with caplog.at_level(logging.INFO):
            assert data.default_preprocess() == data.default_preprocess()
        assert caplog.text.count(f"mean and std from {num_images} training images") == 2


# Batches


def test_evaluation_images_of_mixed_sizes_equal_those_of_resize_and_crop(tmp_path: Path):
    folder(tmp_path, {"train/ant": 4, "train/bee": 4, "test/ant": 1})
    for index, size in enumerate([(70, 100), (300, 20), (1, 1), (257, 256)]):
        noise(tmp_path / "val" / "bee" / f"{index}.png", size)
    data = module(tmp_path)
    images, labels = everything(data.val_dataloader())
    paths = data.splits.val.paths
    expected = [resize_and_crop(read_image(path), data.preprocess).transpose(2, 0, 1) for path in paths]
    assert (images.dtype, labels.tolist()) == (torch.uint8, [1, 1, 1, 1])
    np.testing.assert_array_equal(images, np.stack(expected))


def test_training_images_keep_their_labels(tmp_path: Path):
    for name, value in (("black", 0), ("white", 255)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (40 + index, 35), (value,) * 3).save(tmp_path / "train" / name / f"{index}.png")
    images, labels = everything(module(tmp_path, augment=STANDARD).train_dataloader())
    assert set(labels.tolist()) == {0, 1}
    assert torch.equal(images[:, 0, 0, 0].long(), labels * 255)


def test_batches_are_the_same_with_0_and_2_workers(squares: Path):
    ours, theirs = (module(squares, num_workers=num_workers, augment=STANDARD) for num_workers in (0, 2))
    for loader in ("train_dataloader", "val_dataloader"):
        parts = zip(everything(getattr(ours, loader)()), everything(getattr(theirs, loader)()), strict=True)
        assert all(torch.equal(part, other) for part, other in parts)


@pytest.mark.slow
def test_a_spawned_worker_returns_the_same_batches_also_from_the_cache(squares: Path, tmp_path: Path):
    """On Windows and macOS workers are not forked: data, augmentation and cache are pickled."""
    spawn = {"multiprocessing_context": "spawn"}
    ours = module(squares, augment=STANDARD)
    cached = {"cache": "disk", "cache_dir": tmp_path}
    theirs = module(squares, num_workers=1, loader=spawn, augment=STANDARD, **cached)
    theirs.fill_cache(1, 5)
    parts = zip(everything(ours.train_dataloader()), everything(theirs.train_dataloader()), strict=True)
    assert all(torch.equal(part, other) for part, other in parts)


def test_a_sample_is_augmented_alike_in_any_batch_and_differently_in_each_epoch(photographs: Path):
    data = module(photographs, augment=STANDARD)
    dataset = data.training_dataset()
    batch, _ = dataset.__getitems__(BatchIndices(1, np.array([3, 5, 7])))
    alone, _ = dataset.__getitems__(BatchIndices(1, np.array([5])))
    later, _ = dataset.__getitems__(BatchIndices(2, np.array([5])))
    assert torch.equal(batch[1], alone[0])
    assert not torch.equal(alone, later)


def test_without_a_random_resized_crop_training_resizes_as_evaluation_does(photographs: Path):
    data = module(photographs, augment={"flip_probability": 1.0})
    key = BatchIndices(0, np.arange(4))
    flipped, _ = data.training_dataset().__getitems__(key)
    plain, _ = data.dataset("train").__getitems__(key)
    assert torch.equal(flipped, plain.flip(3))


def test_an_empty_batch_is_an_empty_array(squares: Path):  # the last batch of a rank may be empty
    images, labels = module(squares).dataset("val").__getitems__(BatchIndices(0, np.arange(0)))
    assert (images.shape, labels.shape) == ((0, 3, 12, 12), (0,))


@pytest.mark.parametrize("name", ["crop_padding_px", "cutout_px"])
def test_an_augmentation_larger_than_the_images_is_refused(squares: Path, name: str):
    data = module(squares, augment={name: 12})
    with pytest.raises(ConfigError, match=f"augment.{name}=12 must be less than the side of the images, 12 px"):
        data.train_dataloader()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("has_gpu", "cores", "expected"), [(True, 1, 1), (True, 2, 2), (True, 64, 16), (False, 64, 0)])
def test_with_a_gpu_up_to_16_cores_decode_and_on_a_cpu_none(
    squares: Path, monkeypatch: pytest.MonkeyPatch, has_gpu: bool, cores: int, expected: int
):
    monkeypatch.setattr("imago.data.datamodule.available_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert module(squares, num_workers=None).train_dataloader().num_workers == expected


def test_balanced_batches_show_both_classes_equally_often_and_augment_repetitions_differently(tmp_path: Path):
    root = folder(tmp_path / "set", {"ant": 30, "bee": 3})
    augment = {"crop_padding_px": 4, "flip_probability": 0.5}
    batches = list(module(root, sampler="balanced", augment=augment, test_fraction=0.01).train_dataloader())
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    assert abs(int((labels == 0).sum()) - int((labels == 1).sum())) <= 8  # one batch is dropped
    bees = np.concatenate([images[labels == 1].numpy() for images, labels in batches])
    assert len(np.unique(bees.reshape(len(bees), -1), axis=0)) > len(bees) / 2


# Fingerprint


def test_the_fingerprint_depends_on_names_and_sizes_of_files_but_not_on_the_parent_folder(tmp_path: Path):
    root = folder(tmp_path / "set", {"train/ant": 3, "train/bee": 3, "val/ant": 1, "test/ant": 1})
    first = module(root).fingerprint()
    shutil.copytree(root, tmp_path / "there")
    assert module(tmp_path / "there").fingerprint() == first
    (root / "train" / "ant" / "00.png").rename(root / "train" / "ant" / "0.png")
    renamed = module(root).fingerprint()
    noise(root / "train" / "ant" / "0.png", (13, 12))
    assert len({first, renamed, module(root).fingerprint()}) == 3


# Unreadable images; the faults of single files are in tests/faults/test_images.py


def test_skip_leaves_unreadable_images_out_of_every_split(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = folder(tmp_path / "set", {"ant": 12, "bee": 8})
    (root / "ant" / "04.png").write_bytes(b"")
    (root / "bee" / "05.png").write_bytes(b"<html>not found</html>")
    with caplog.at_level(logging.INFO):
        data = module(root, on_bad_image="skip")
    assert not set.union(*names(data).values()) & {"ant/04.png", "bee/05.png"}
    assert sum(len(files) for _, files in data.splits.items()) == 18
    assert "left out 2 images that cannot be read (10 %)" in caplog.text


def test_a_class_without_readable_training_images_is_refused_even_with_skip(tmp_path: Path):
    root = folder(tmp_path / "set", {"ant": 5, "bee": 5})
    for path in (root / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="the dataset has no training images of class 'bee' that can be read; add some"):
        module(root, on_bad_image="skip")


@pytest.mark.needs_data
@pytest.mark.slow
def test_hymenoptera_has_its_images_labels_and_statistics(real_data: Path):
    data = module(real_data / "hymenoptera_data", augment=STANDARD)
    assert data.class_names == ("ants", "bees")
    assert len(data.splits.train) + len(data.splits.test) == 245  # one shows no ant, but it is an image
    assert counts(data)["val"] == [70, 83]
    assert data.preprocess.mean == pytest.approx((0.52, 0.47, 0.35), abs=0.02)
    assert data.preprocess.std == pytest.approx((0.27, 0.25, 0.28), abs=0.02)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((8, 3, 224, 224), torch.uint8)
    key = next(iter(data.train_dataloader().batch_sampler))
    assert labels.tolist() == [["ants", "bees"].index(data.splits.train.paths[i].parent.name) for i in key.indices]


# CSV lists


def write_listed(root: Path, lines: list[str]) -> Path:
    """Write a list and the images that it names, each of another color."""
    for number, line in enumerate(lines[1:]):
        path = root / line.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (number, 0, 0)).save(path)
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


FORTY = ["path,label", *(f"{number}.png,{number % 2}" for number in range(40))]


def test_a_list_determines_split_and_class_of_each_image(tmp_path: Path):
    rows = [
        f"{split}_{name}_{n}.png,{name},{split}" for split in ("train", "val", "test") for name in "ba" for n in "12"
    ]
    data = listed(write_listed(tmp_path, ["path,label,split", *rows]))
    assert data.class_names == ("a", "b")
    for split, files in data.splits.items():
        labels = np.array(data.class_names)[files.labels]
        assert [name.split("_")[:2] for name in files.names] == [[split, label] for label in labels]
    images, labels = next(iter(data.test_dataloader()))
    assert images[:, 0, 0, 0].tolist() == [8, 9, 10, 11]
    assert labels.tolist() == [1, 1, 0, 0]


def test_a_list_without_the_column_split_is_split_as_a_folder_is(tmp_path: Path):
    data = listed(write_listed(tmp_path, FORTY))
    assert [len(split) for _, split in data.splits.items()] == [28, 8, 4]
    assert data.random_splits == ["test", "val"]


def test_the_paths_of_a_list_are_relative_to_root_if_it_is_set(tmp_path: Path):
    moved = write_listed(tmp_path / "images", FORTY).rename(tmp_path / "list.csv")
    data = listed(moved, root=str(tmp_path / "images"))
    assert len(data.splits.train.read(0, data.class_names)) == 12


def test_an_empty_list_file_is_refused():
    with pytest.raises(ConfigError, match="data.list_file has no value; set it to a CSV"):
        ImageListDataModule("", **settings_of(Path()))


def test_images_above_max_pixels_are_refused_or_left_out_and_above_pillows_limit_read(tmp_path: Path, monkeypatch):
    root = folder(tmp_path / "set", {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2})
    noise(root / "train" / "a" / "large.png", (40, 30), 99)
    assert "train/a/large.png" in names(module(root))["train"] | names(module(root))["val"]
    skipping = module(root, on_bad_image="skip", max_pixels=1_000)
    (bad,) = skipping.bad_images
    assert bad[0] == "train/a/large.png"
    assert bad[1].endswith("is 40x30, more than 1,000 pixels; scale it down, or raise max_pixels.")
    files = skipping.splits.test
    with pytest.raises(
        DataError, match="is 12x12, more than 100 pixels; scale it down, or raise data.max_pixels. check"
    ):
        module(root, max_pixels=100).splits.test.read(0, ("a", "b"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert files.read(0, ("a", "b")).shape == (12, 12, 3)
