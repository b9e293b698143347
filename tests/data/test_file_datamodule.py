"""Pictures in files: what is damaged is left out, a split is written down and taken back, classes are balanced."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imago.data.image_folder_module import ImageFolderDataModule
from imago.errors import ConfigError, DataError

NUM = {"ant": 30, "bee": 20}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of class folders; every picture has another colour."""
    for name, count in NUM.items():
        for number in range(count):
            path = tmp_path / "set" / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 12), (5 * number, 0, 0)).save(path)
    return tmp_path / "set"


def module(root: Path, **settings) -> ImageFolderDataModule:
    given = {"val_fraction": 0.2, "test_fraction": 0.1, "cache": "none", "cache_dir": str(root.parent / "cache")}
    loading = {"batch_size": 8, "num_workers": 0, "augment": {}, "seed": 0}
    data = ImageFolderDataModule(root=str(root), **(given | loading | settings))
    data.set_up_data()
    return data


def split_names(data: ImageFolderDataModule) -> dict[str, set[str]]:
    return {split: set(part.names) for split, part in data.splits.named()}


def spoil(root: Path) -> dict[str, str]:
    """Damage three pictures; gives what is wrong with each."""
    whole = (root / "ant" / "03.png").read_bytes()
    (root / "ant" / "03.png").write_bytes(whole[: len(whole) // 2])
    (root / "ant" / "04.png").write_bytes(b"")
    (root / "bee" / "05.png").write_bytes(b"<html>not found</html>")
    return {"ant/03.png": "damaged", "ant/04.png": "empty", "bee/05.png": "not a"}


# Bad pictures


def test_skip_leaves_the_bad_ones_out_of_every_split_and_lists_them(root: Path, caplog: pytest.LogCaptureFixture):
    reasons = spoil(root)
    with caplog.at_level(logging.INFO):
        data = module(root, on_bad_image="skip")
    assert not set.union(*split_names(data).values()) & set(reasons)
    assert sum(len(part) for _, part in data.splits.named()) == 47
    assert "left out 3 pictures that cannot be read (6 %)" in caplog.text
    data.write_down(root.parent)
    with (root.parent / "bad_images.csv").open() as file:
        listed = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert listed.keys() == reasons.keys()
    assert all(reasons[path] in reason for path, reason in listed.items())


def test_a_class_without_a_readable_picture_is_an_error_even_with_skip(root: Path):
    for path in (root / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class 'bee' of .* has no training pictures that can be read"):
        module(root, on_bad_image="skip")


def test_a_set_without_bad_pictures_writes_no_list(root: Path):
    data = module(root, on_bad_image="skip")
    data.write_down(root.parent)
    assert not (root.parent / "bad_images.csv").exists()


def test_an_unknown_way_with_bad_pictures_is_refused(root: Path):
    with pytest.raises(ConfigError, match="data.on_bad_image=ignore is not one of error, skip"):
        module(root, on_bad_image="ignore")


# Splits on paper


def test_a_drawn_split_is_written_down_and_comes_back_whatever_the_seed(root: Path):
    first = module(root)
    first.write_down(root.parent)
    again = module(root, split_file=str(root.parent / "split.csv"), split_seed=7)
    assert split_names(again) == split_names(first)
    assert again.fingerprint() == first.fingerprint()


def test_a_split_that_the_source_gives_is_not_written_down(root: Path):
    for split in ("train", "val", "test"):
        (root.parent / "given" / split).mkdir(parents=True)
        for name in NUM:
            (root.parent / "given" / split / name).symlink_to(root / name)
    given = root.parent / "copied"
    for split, part in split_names(module(root)).items():
        for name in part:
            (given / split / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).rename(given / split / name)
    module(given).write_down(root.parent)
    assert not (root.parent / "split.csv").exists()


def test_folds_of_a_folder_cover_it_and_share_one_test_split(root: Path):
    folds = [split_names(module(root, fold=fold, num_folds=3)) for fold in range(3)]
    assert folds[0]["test"] == folds[1]["test"] == folds[2]["test"]
    assert set.union(*(fold["val"] for fold in folds)) | folds[0]["test"] == set.union(*folds[0].values())


# Balance


def test_balanced_batches_show_both_classes_equally_often(root: Path):
    data = module(root, sampler="balanced")
    labels = np.concatenate([labels.numpy() for _, labels in data.train_dataloader()])
    assert abs(int((labels == 0).sum()) - int((labels == 1).sum())) <= 8  # a batch's worth is dropped


def test_repeated_pictures_are_augmented_anew(root: Path):
    for number in range(2, 20):
        (root / "bee" / f"{number:02d}.png").unlink()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels).save(root / "bee" / f"{number:02d}.png")
    data = module(root, sampler="balanced", augment={"crop_padding_px": 4, "flip_probability": 0.5}, test_fraction=0.01)
    bees = np.concatenate([images[labels == 1].numpy() for images, labels in data.train_dataloader()])
    assert len(np.unique(bees.reshape(len(bees), -1), axis=0)) > len(bees) / 2


def test_an_unknown_sampler_is_refused(root: Path):
    with pytest.raises(ConfigError, match="data.sampler=weighted is not one of shuffle, balanced"):
        module(root, sampler="weighted")
