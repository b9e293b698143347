"""Image folders and labels with faults are refused in one line or logged; ids are rows of the list of faults."""

import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import LabeledArray
from imago.data.folder_listing import EXPECTED_TREE
from imago.errors import DataError
from imago.images import Preprocess

TREE = f"expected {EXPECTED_TREE}"


def error_of(function: Callable, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


# By case: number of images in each folder (None: no folder at all), and the fault.
WRONG = {
    "25-no such folder": (None, f"data.root=ROOT does not exist; {TREE}."),
    "26-empty": ({"": 0}, f"ROOT is empty; {TREE}."),
    "26-images without classes": ({"": 3}, f"ROOT has no class folders; {TREE}."),
    "26-splits without classes": ({"train": 3, "val": 1}, f"ROOT/train has no class folders; {TREE}."),
    "27-empty class": (
        {"train/ant": 4, "train/bee": 4, "train/cat": 0},
        "has no training images of class 'cat' that can be read; add some",
    ),
    "28-one class": (
        {"train/ant": 4, "val/ant": 2},
        "ROOT/train has only one class folder, 'ant'; a classifier needs at least 2.",
    ),
    "29-folder around classes": (
        {"dataset/ant": 4, "dataset/bee": 4, "__MACOSX": 1},
        "Did you mean data.root=ROOT/dataset?",
    ),
    "29-folder around splits": ({"dataset/train/ant": 4}, "Did you mean data.root=ROOT/dataset?"),
    "31-unknown class": (
        {"train/ant": 4, "train/bee": 4, "val/ants": 2},
        "ROOT/val has a class 'ants' that the training images do not have; the classes are ant, bee.",
    ),
    "36-accents": (
        {f"train/{unicodedata.normalize(form, 'café')}": 2 for form in ("NFC", "NFD")},
        r"'cafe\u0301' and 'caf\xe9' look the same; merge or rename them.",
    ),
    "36-blank": ({"cat": 4, "cat ": 4}, "'cat' and 'cat ' look the same; merge or rename them."),
}


@pytest.mark.parametrize(("counts", "fault"), WRONG.values(), ids=WRONG)
def test_a_folder_that_is_not_a_dataset_is_refused_in_one_line(
    tmp_path: Path, fill: Callable, set_up: Callable, counts: dict[str, int] | None, fault: str
):
    if counts is not None:
        fill(tmp_path / "set", counts)
    assert fault in error_of(set_up, tmp_path / "set").replace(f"{tmp_path}/set", "ROOT")


def test_hidden_folders_are_not_classes_and_hold_no_images(tmp_path: Path, fill: Callable, set_up: Callable, caplog):
    hidden = ["__MACOSX", ".ipynb_checkpoints", "ant/__MACOSX", "bee/.ipynb_checkpoints"]
    root = fill(tmp_path / "set", {"ant": 10, "bee": 10, **dict.fromkeys(hidden, 2)})
    (root / "ant" / "._00.png").write_bytes(b"\0")
    with caplog.at_level(logging.INFO):
        data = set_up(root)
    assert data.class_names == ("ant", "bee")
    assert sum(len(part) for _, part in data.splits.items()) == 20
    assert data.ignored_entries == [(name, "hidden name") for name in sorted([*hidden, "ant/._00.png"])]
    assert "ignored 5 entries: 5 x hidden name (e.g. " in caplog.text


def test_labels_of_val_go_by_the_class_names_of_train(tmp_path: Path, fill: Callable, set_up: Callable):
    data = set_up(fill(tmp_path / "set", {"train/ant": 4, "train/bee": 4, "val/bee": 2, "test/ant": 1}))
    assert data.class_names == ("ant", "bee")
    assert data.splits.val.labels.tolist() == [1, 1]


def test_links_to_folders_are_not_followed_and_a_file_of_several_names_is_listed_once(
    tmp_path: Path, fill: Callable, set_up: Callable
):
    root = fill(tmp_path / "set", {"ant": 10, "bee": 10})
    (root / "ant" / "loop").symlink_to("..")
    (root / "ant" / "loop.png").symlink_to(root / "bee")
    (root / "cat").symlink_to("bee")
    os.link(root / "ant" / "00.png", root / "ant" / "again.png")
    (root / "bee" / "again.png").symlink_to("00.png")
    data = set_up(root)
    assert data.class_names == ("ant", "bee")
    assert sum(len(part) for _, part in data.splits.items()) == 20
    link = "link to a folder (not followed)"
    again = [(f"{name}/again.png", f"same file as {name}/00.png") for name in ("ant", "bee")]
    assert data.ignored_entries == [again[0], ("ant/loop", link), ("ant/loop.png", link), again[1], ("cat", link)]


def test_a_link_out_of_the_dataset_is_followed_and_logged(
    tmp_path: Path, fill: Callable, set_up: Callable, caplog: pytest.LogCaptureFixture
):
    root = fill(tmp_path / "set")
    fill(tmp_path / "elsewhere", {"": 1})
    (root / "val" / "bee" / "out.png").symlink_to(tmp_path / "elsewhere" / "00.png")
    with caplog.at_level(logging.INFO):
        data = set_up(root)
    assert "val/bee/out.png" in data.splits.val.names
    assert "followed 1 link to an image, e.g. val/bee/out.png" in caplog.text


@pytest.mark.parametrize(
    "target", ["gone.png", "x.png", "00.png/below"], ids=["34-target gone", "34-link to itself", "34-below a file"]
)
def test_a_dangling_link_is_reported_at_the_start(
    tmp_path: Path, fill: Callable, set_up: Callable, caplog: pytest.LogCaptureFixture, target: str
):
    root = fill(tmp_path / "set")
    (root / "val" / "bee" / "x.png").symlink_to(target)
    with caplog.at_level(logging.INFO):
        data = set_up(root)
    assert data.ignored_entries == [("val/bee/x.png", "dangling link")]
    assert "ignored 1 entry: 1 x dangling link (e.g. val/bee/x.png)" in caplog.text
    assert sum(len(images) for images, _ in data.val_dataloader()) == 4


@pytest.mark.timeout(60)  # opening the pipe would wait for ever
def test_a_pipe_named_like_an_image_is_never_opened(tmp_path: Path, fill: Callable, set_up: Callable):
    root = fill(tmp_path / "set")
    os.mkfifo(root / "val" / "bee" / "x.png")
    data = set_up(root)
    assert data.ignored_entries == [("val/bee/x.png", "not a regular file")]
    assert sum(len(images) for images, _ in data.val_dataloader()) == 4


def test_numeric_class_names_keep_their_labels(tmp_path: Path, fill: Callable, set_up: Callable):
    counts = {"1": 5, "2": 6, "10": 7}
    data = set_up(fill(tmp_path / "set", {f"train/{name}": count for name, count in counts.items()}))
    assert data.class_names == ("1", "10", "2")
    labels = np.concatenate([part.labels for _, part in data.splits.items()])
    assert {name: (labels == label).sum() for label, name in enumerate(data.class_names)} == counts


def test_a_name_that_is_not_utf_8_is_served_and_printed(
    tmp_path: Path, fill: Callable, set_up: Callable, caplog: pytest.LogCaptureFixture
):
    root = fill(tmp_path / "set")
    odd = os.fsencode(root / "val" / "bee") + b"/caf\xe9"
    os.rename(root / "val" / "bee" / "00.png", odd + b".png")
    with open(odd + b".txt", "w", encoding="utf-8"):
        pass
    with caplog.at_level(logging.INFO):
        data = set_up(root)
    assert r"1 x file extension .txt (e.g. val/bee/caf\udce9.txt)" in caplog.text
    assert sum(len(images) for images, _ in data.val_dataloader()) == 4
    os.truncate(odd + b".png", 0)
    text = error_of(list, data.val_dataloader())
    assert text.startswith(f"an image of class 'bee': {root}/val/bee/caf\\udce9.png is empty (0 bytes)")


class Labeled(ImageDataModule):
    """Ten gray images with the labels given."""

    def __init__(self, labels: list[int]) -> None:
        super().__init__(batch_size=4, num_workers=0, augment={}, seed=0)
        self.labels = labels

    def load_dataset(self) -> ClassNamesAndSplits:
        names = tuple(str(number) for number in range(len(self.labels)))
        part = LabeledArray(np.full((len(names), 3, 8, 8), 128, np.uint8), np.array(self.labels, np.int64), names)
        return ("ant", "bee"), {"train": part, "val": part, "test": part}

    def default_preprocess(self) -> Preprocess:
        return Preprocess(8, 8, "center", (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("labels", "span"),
    [
        pytest.param([0, 1, 5, 1], "from 0 to 5", id="40-more than classes"),
        pytest.param([0, 1, 2, 1], "from 0 to 2", id="40-counted from 1"),
        pytest.param([-100] * 4, "from -100 to -100", id="41-all ignored"),
        pytest.param([0, -100, 1, 1], "from -100 to 1", id="41-one ignored"),
    ],
)
def test_labels_without_a_class_are_refused_at_the_start(labels: list[int], span: str):
    text = error_of(Labeled(labels).set_up_data)
    remedy = "correct the labels or the class names."
    assert text == f"the train split has labels {span}; with 2 classes they must be in 0 .. 1; {remedy}"


@pytest.mark.parametrize("num_samples", [5, 9, 10, 3], ids=lambda n: f"42-{n} in batches of 4")
def test_batch_norm_never_gets_a_batch_of_one(num_samples: int):
    data = Labeled([0, 1] * num_samples)
    data.labels = data.labels[:num_samples]
    data.set_up_data()
    norm = torch.nn.BatchNorm1d(3)
    sizes = [len(norm(images.float().mean(dim=(2, 3)))) for images, _ in data.train_dataloader()]
    assert sizes == [min(4, num_samples)] * (num_samples // min(4, num_samples))
