"""Training images of a run are found under any name of their dataset; the numbers are known beforehand."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imago.data.csv_list import files_from_list, read_list
from imago.data.dataset import LabeledArray, LabeledFiles, numbered_names
from imago.data.folder_listing import list_image_folder
from imago.errors import ConfigError
from imago.inference.trained_images import trained_on_note

CLASSES = ("a", "b")


def folder(root: Path, split: str = "train") -> LabeledFiles:
    return list_image_folder(root)[1][split]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """6 training and 2 test images of one size on the disk, 4 and 4 pixels wide."""
    generator = np.random.default_rng(0)
    for split, num_images in (("train", 3), ("val", 1), ("test", 1)):
        for name in CLASSES:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(num_images):
                file = tmp_path / "images" / split / name / f"{number}.bmp"
                Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8)).save(file)
    return tmp_path / "images"


def test_the_images_themselves_are_refused_by_any_path(root: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "list.csv").write_text("path,label\nimages/train/a/0.bmp,a\nimages/test/b/0.bmp,b\n")
    listed = files_from_list(tmp_path, read_list(tmp_path / "list.csv"), CLASSES)["train"]
    for samples, number in ((folder(tmp_path / "link"), 6), (folder(root / "train"), 6), (listed, 1)):
        with pytest.raises(ConfigError, match=f"^{number} of these {len(samples)} images are training images") as line:
            trained_on_note(samples, CLASSES, folder(root), CLASSES)
        assert "\n" not in str(line.value)
    assert trained_on_note(folder(root, "test"), CLASSES, folder(root), CLASSES) == ""


def test_copies_are_counted(root: Path, tmp_path: Path):
    shutil.copytree(root, tmp_path / "copy")
    text = trained_on_note(folder(tmp_path / "copy"), CLASSES, folder(root), CLASSES)
    assert text == "6 of these 6 images are copies of images that the run was trained on"
    shutil.copy(root / "train" / "a" / "1.bmp", tmp_path / "copy" / "test" / "a" / "another name.bmp")
    text = trained_on_note(folder(tmp_path / "copy", "test"), CLASSES, folder(root), CLASSES)
    assert text.startswith("1 of these 3 images are copies")
    assert trained_on_note(folder(tmp_path / "copy", "val"), CLASSES, folder(root), CLASSES) == ""


def test_classes_are_compared_as_in_evaluation(tmp_path: Path):
    for number in range(2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.bmp")
    found, first = {}, {"train": "n01440764 caf\u00e9", "same": "cafe\u0301", "id": "n01440764"}
    for name, label_of_0 in first.items():
        labels = (label_of_0, "b")
        rows = [f"{number}.bmp,{label}" for number, label in enumerate(labels)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
        found[name] = labels, files_from_list(tmp_path, read_list(tmp_path / f"{name}.csv"), labels)["train"]
    (train_names, train) = found["train"]
    for names, samples in (found["same"], found["id"]):
        with pytest.raises(ConfigError, match=r"^2 of these 2 images are training images"):
            trained_on_note(samples, names, train, train_names)


def test_classes_that_the_run_has_no_more_are_said_to_be_unknown(root: Path):
    text = trained_on_note(folder(root, "test"), CLASSES, folder(root), ("a", "other"))
    assert text.startswith(
        "whether the run was trained on some of these images is unknown: the dataset has classes that"
    )


def test_datasets_of_different_kinds_are_said_to_be_unknown(root: Path):
    other = LabeledArray(np.zeros((2, 3, 4, 4), np.uint8), np.arange(2), numbered_names("train", 2))
    for samples, train in ((other, folder(root)), (folder(root), other)):
        assert trained_on_note(samples, CLASSES, train, CLASSES).startswith(
            "whether the run was trained on some of these"
        )


def test_images_in_memory_are_compared_by_their_pixels():
    pixels = np.random.default_rng(1).integers(0, 256, (30, 3, 8, 8), np.uint8)
    train = LabeledArray(pixels[:20], np.arange(20) % 2, numbered_names("train", 20))
    with pytest.raises(ConfigError, match="^3 of these 3 images"):  # as val with another val_fraction
        trained_on_note(train.take(np.array([4, 7, 9])), CLASSES, train, CLASSES)
    test = LabeledArray(pixels[15:], np.arange(15) % 2, numbered_names("test", 15))
    assert trained_on_note(test, CLASSES, train, CLASSES).startswith("5 of these 15 images are copies")
    assert trained_on_note(test.take(np.arange(5, 15)), CLASSES, train, CLASSES) == ""
    other = LabeledArray(pixels[20:], np.arange(10) % 2, numbered_names("train", 10))  # other images of the same names
    assert trained_on_note(other, CLASSES, train, CLASSES) == ""
