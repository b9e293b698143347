"""Groups stay whole in every split and fold, which are as balanced as groups allow; bad input is one line."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from imago.data.csv_list import read_list
from imago.data.dataset import LabeledFiles
from imago.data.file_datamodule import ImageFolderDataModule, ImageListDataModule
from imago.data.groups import distribute_groups, groups_by_pattern
from imago.data.shapes import ShapesDataModule
from imago.data.splitting import SplitPlan, complete_splits
from imago.errors import ConfigError, DataError

NAMES = ("ant", "bee")


def listed(groups: list[str], labels: list[int] | None = None, split: str = "train") -> LabeledFiles:
    """Return files without content, one for each group name."""
    numbers = np.zeros(len(groups), np.int64)
    classes = np.array(labels if labels is not None else [index % 2 for index in range(len(groups))])
    names = tuple(f"{split}/{index}.png" for index in range(len(groups)))
    return LabeledFiles(Path(), names, numbers, numbers, classes, groups=np.array(groups))


def drawn(num_groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of three classes and groups of 1 to 20 images, most of which have one class."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), rng.integers(1, 21, num_groups))
    main = rng.choice(3, num_groups, p=(0.6, 0.3, 0.1))[groups]
    labels = np.where(rng.random(len(groups)) < 0.8, main, rng.integers(0, 3, len(groups)))
    return labels, np.array([f"p{number}" for number in groups])


def imbalance(labels: np.ndarray, folds: np.ndarray) -> float:
    """The standard deviation over the folds of the share of each class in a fold, mean over the classes."""
    counts = np.array([np.bincount(labels[folds == fold], minlength=3) for fold in range(5)])
    return float((counts / counts.sum(axis=0)).std(axis=0).mean())


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_whole_groups_are_as_balanced_as_those_of_scikit_learn(seed: int):
    labels, groups = drawn(60, seed)
    folds = distribute_groups(labels, groups, [0.2] * 5, seed)
    assert all(len(np.unique(folds[groups == name])) == 1 for name in np.unique(groups))
    splits = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
    theirs = np.empty(len(labels), np.int64)
    for fold, (_, indices) in enumerate(splits):
        theirs[indices] = fold
    assert imbalance(labels, folds) <= imbalance(labels, theirs) + 0.01
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 0.1 * len(labels)


def test_the_split_seed_determines_the_groups_and_shares_are_kept():
    labels, groups = drawn(100, 0)
    parts = [distribute_groups(labels, groups, [0.7, 0.3], seed) for seed in (0, 0, 1)]
    assert np.array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[0], parts[2])
    assert [part.mean() for part in parts] == pytest.approx([0.3] * 3, abs=0.02)
    order = np.random.default_rng(1).permutation(len(labels))  # the order of the images does not matter
    assert np.array_equal(distribute_groups(labels[order], groups[order], [0.7, 0.3], 0), parts[0][order])


def test_every_part_gets_a_group_even_a_large_one():
    labels, groups = np.arange(10) % 2, np.repeat(list("abcde"), 2)
    assert np.bincount(distribute_groups(labels, groups, [0.95, 0.05], 0)).tolist() == [8, 2]


@pytest.mark.parametrize("fold", [None, 0, 2])
def test_drawn_splits_share_no_group_and_the_test_split_does_not_depend_on_the_fold(fold: int | None):
    labels, groups = drawn(60, 3)
    published = {"train": listed(groups.tolist(), labels.tolist())}
    settings = {"test_fraction": 0.2, "val_fraction": 0.2, "num_folds": 3, "group_by": "patient"}
    splits, _ = complete_splits(published, SplitPlan(fold=fold, **settings), ("a", "b", "c"))
    names = [set(part.groups.tolist()) for part in splits.values()]
    assert len(set.union(*names)) == sum(map(len, names)) == 60
    assert 0.15 < len(splits["test"]) / len(labels) < 0.25
    assert splits["test"].names == complete_splits(published, SplitPlan(**settings), ("a", "b", "c"))[0]["test"].names


def test_given_splits_that_share_a_group_are_named(caplog):
    published = {
        "train": listed(["p1", "p2", "p3", "p3"]),
        "val": listed(["p4", "p3"], split="val"),
        "test": listed(["p1", "p5"], split="test"),
    }
    with caplog.at_level(logging.WARNING):
        complete_splits(published, SplitPlan(group_by="patient"), NAMES)
    end = "so the result of {} is too good; check.py lists them"
    assert caplog.messages == [
        f"1 group of data.group_by=patient, p1, is in both train and test, {end.format('test')}",
        f"1 group of data.group_by=patient, p3, is in both train and val, {end.format('val')}",
    ]


@pytest.mark.parametrize(
    ("groups", "settings", "message"),
    [
        (["p1", "p1", "p2", "p2"], {"fold": 0, "num_folds": 3}, "data.num_folds=3: data.group_by=patient has 2 groups"),
        (["p1"] * 9 + ["p2"], {"fold": 0, "num_folds": 2}, "group 'p1' of data.group_by=patient has 9 of 10 training"),
        (
            ["p1"] * 9 + ["p2"],
            {"val_fraction": 0.2},
            "data.val_fraction=0.2: group 'p1' of data.group_by=patient has 9",
        ),
        (
            ["p1"] * 4,
            {},
            "data.val_fraction=0.1: data.group_by=patient has 1 group of training images, which is too few",
        ),
        (["p1", "p2", "p1", "p2"], {"fold": 0, "num_folds": 2}, "class 'bee' is only in groups that are split off"),
    ],
)
def test_groups_that_cannot_be_split_end_in_one_line(groups: list[str], settings: dict, message: str):
    plan = SplitPlan(**settings, group_by="patient")
    with pytest.raises(DataError) as caught:
        complete_splits({"train": listed(groups), "test": listed(["p9"] * 2)}, plan, NAMES)
    assert message in str(caught.value).replace("class 'ant'", "class 'bee'")  # which of them is in fold 0
    assert "\n" not in str(caught.value)


def test_settings_of_groups_are_checked():
    with pytest.raises(ConfigError, match="both define groups; use one"):
        SplitPlan(group_by="patient", group_pattern="(.+)_")
    with pytest.raises(ConfigError, match=r"data.group_by=patient needs data=image_list; leave it out."):
        ImageFolderDataModule("x", "y", group_by="patient", **SETTINGS)
    with pytest.raises(ConfigError, match=r"data.group_pattern=p needs image files, data=image_folder or data=image"):
        ShapesDataModule(group_pattern="p", **SETTINGS)
    with pytest.raises(ConfigError, match=r"data.group_pattern=\(p is not a regular expression: missing \)"):
        SplitPlan(group_pattern="(p")


def test_the_pattern_is_searched_in_the_file_name_or_in_the_path_if_it_has_a_slash():
    names = ["train/ants/p1_2.jpg", "train/bees/p12_1.jpg"]
    assert groups_by_pattern(names, r"(p\d+)_").tolist() == ["p1", "p12"]
    assert groups_by_pattern(names, r"^p\d+").tolist() == ["p1", "p12"]
    assert groups_by_pattern(names, r"/(\w+)/p").tolist() == ["ants", "bees"]
    with pytest.raises(DataError) as caught:
        groups_by_pattern([*names, "train/bees/x.jpg"], r"(p\d+)_")
    assert str(caught.value) == (
        r"data.group_pattern=(p\d+)_ finds no group in 1 of 3 file names, e.g. train/bees/x.jpg; change it so that "
        "every image has one."
    )


def write_images(root: Path, names: list[str]) -> Path:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (index, 0, 0)).save(root / name)
    return root


SETTINGS = {"batch_size": 4, "num_workers": 0, "augment": {}, "seed": 0, "test_fraction": 0.25, "val_fraction": 0.25}


def test_a_folder_gets_groups_from_its_file_names(tmp_path: Path):
    names = [f"{name}/p{number}_{frame}.png" for name in NAMES for number in range(8) for frame in range(2)]
    root = write_images(tmp_path / "set", names)
    data = ImageFolderDataModule(str(root), str(tmp_path), group_pattern=r"(p\d+)_", **SETTINGS)
    data.set_up_data()
    groups = [set(part.groups.tolist()) for _, part in data.splits.items()]
    assert sorted(map(len, groups)) == [2, 2, 4]
    assert len(set.union(*groups)) == 8


def test_a_list_gets_groups_from_a_column_whose_problems_are_named(tmp_path: Path):
    root = write_images(tmp_path, [f"{number}.png" for number in range(12)])
    rows = [f"{number}.png,{NAMES[number % 2]},P {number // 3} ,x" for number in range(12)]
    file = root / "list.csv"
    file.write_text("\n".join(["path,label,Patient,site", *rows]))
    data = ImageListDataModule(str(file), cache_dir=str(tmp_path), group_by="patient", **SETTINGS)
    data.set_up_data()
    groups = [set(part.groups.tolist()) for _, part in data.splits.items()]
    assert sorted(map(len, groups)) == [1, 1, 2]
    assert set.union(*groups) == {"P 0", "P 1", "P 2", "P 3"}
    for column in ("patients", "label"):
        with pytest.raises(
            DataError, match=f"data.group_by={column}: .*list.csv has patient, site besides path, label"
        ):
            read_list(file, column)
    file.write_text("path,label,patient\n0.png,ant,p\n1.png,bee, \n")
    with pytest.raises(DataError, match=r"list.csv, line 3: the cell of data.group_by is empty; write the group"):
        read_list(file, "patient")
