"""Splits: shares, folds, lists, and errors."""

import hashlib
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imago.data.dataset import LabeledArray
from imago.data.folder_listing import list_image_folder
from imago.data.splitting import SplitPlan, complete_splits, training_part
from imago.data.stratified import evenly_spread, stratified_folds, stratified_order, stratified_split
from imago.errors import ConfigError, DataError

NAMES = ("ant", "bee")


def images(split: str, ants: int, bees: int) -> LabeledArray:
    labels = np.repeat([0, 1], [ants, bees])
    names = tuple(f"{split}/{index}" for index in range(len(labels)))
    return LabeledArray(np.zeros((len(labels), 3, 2, 2), np.uint8), labels, names)


def split_up(published: dict[str, LabeledArray], **settings) -> tuple[dict[str, set[str]], list[str]]:
    splits, drawn = complete_splits(published, SplitPlan(**settings), NAMES)
    return {name: set(samples.names) for name, samples in splits.items()}, drawn


# stratified_split

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [400, 100, 20]))


def test_a_split_takes_the_same_share_of_every_class():
    others, chosen = stratified_split(LABELS, 0.1, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([others, chosen])), np.arange(520))
    assert np.bincount(LABELS[chosen]).tolist() == [40, 10, 2]
    for indices in (others, chosen):
        assert indices.dtype == np.int64
        assert (np.diff(indices) > 0).all()


@pytest.mark.parametrize(("fraction", "expected"), [(0.001, [1, 1, 0]), (0.999, [9, 1, 0])])
def test_at_least_one_image_of_a_class_is_split_off_and_one_is_kept(fraction: float, expected: list[int]):
    labels = np.repeat([0, 1, 2], [10, 2, 1])
    _, chosen = stratified_split(labels, fraction, seed=0)
    assert np.bincount(labels[chosen], minlength=3).tolist() == expected


# complete_splits


@pytest.mark.parametrize(("fold", "digest"), [(None, "965edffe6a15d22c"), (1, "779eb0156cca52a4")])
def test_the_splits_of_a_seed_stay_the_same_in_every_version(fold: int | None, digest: str):
    names = tuple(map(str, range(520)))
    published = {"train": LabeledArray(np.zeros((520, 3, 1, 1), np.uint8), LABELS, names)}
    plan = SplitPlan(test_fraction=0.1, split_seed=3, fold=fold)
    splits, _ = complete_splits(published, plan, ("a", "b", "c"))
    drawn = "|".join(",".join(part.names) for part in splits.values())
    assert hashlib.sha256(drawn.encode()).hexdigest().startswith(digest)


@pytest.mark.parametrize(("ants", "bees"), [(50, 50), (80, 20), (90, 10)])
def test_fractions_are_of_all_training_images_also_when_val_is_drawn_after_test(ants: int, bees: int):
    parts, drawn = split_up({"train": images("train", ants, bees)}, val_fraction=0.1, test_fraction=0.2)
    assert drawn == ["test", "val"]
    assert {name: len(part) for name, part in parts.items()} == {"train": 70, "val": 10, "test": 20}


@pytest.mark.parametrize(
    ("num_each", "settings", "text"),
    [
        (5, {"test_fraction": 0.1}, "2 for test (20%, not data.test_fraction=0.1: rounded for each class, to at least"),
        (5, {"test_fraction": 0.1}, "2 for val (20%, not data.val_fraction=0.1: rounded for each class, to at least"),
        (4, {"test_fraction": 0.5}, "4 for test and 2 for val (25%, not data.val_fraction=0.1: "),
        (50, {"test_fraction": 0.1}, "stratified: 10 for test and 10 for val\n"),
        (5, {"test_fraction": 0.2, "fold": 0}, "2 for test and 2 for val (fold 0 of 5)\n"),
    ],
)
def test_a_share_that_is_not_the_one_asked_for_is_printed(num_each: int, settings: dict, text: str, caplog):
    with caplog.at_level(logging.INFO):
        parts, _ = split_up({"train": images("train", num_each, num_each)}, **settings)
    assert text in caplog.text
    if "20%" in text:
        assert len(parts["test"]) / (2 * num_each) == len(parts["val"]) / (2 * num_each) == 0.2


def test_classes_without_images_in_val_or_test_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        split_up({"train": images("train", 20, 2)}, test_fraction=0.1)
        assert caplog.messages == ["val has no images of bee, so it does not measure their recall"]
        split_up({"train": images("train", 20, 20), "test": images("test", 3, 0), "val": images("val", 2, 2)})
    assert caplog.messages[1:] == ["test has no images of bee, so it does not measure their recall"]


def test_the_test_split_does_not_depend_on_val():
    published = {"train": images("train", 40, 20)}
    plans = ({"val_fraction": 0.1}, {"val_fraction": 0.4}, {"fold": 2})
    tests = [split_up(published, test_fraction=0.2, **plan)[0]["test"] for plan in plans]
    tests.append(split_up(published | {"val": images("val", 5, 5)}, test_fraction=0.2)[0]["test"])
    assert all(part == tests[0] for part in tests)


def test_val_and_test_are_drawn_independently_and_both_by_the_split_seed():
    def draw(split: str, given: str, seed: int) -> set[str]:
        published = {"train": images("train", 200, 200), given: images("given", 2, 2)}
        return split_up(published, split_seed=seed, val_fraction=0.25, test_fraction=0.25)[0][split]

    drawn = [draw(*splits, seed) for splits in (("val", "test"), ("test", "val")) for seed in (0, 1)]
    assert [len(part) for part in drawn] == [100] * 4
    overlaps = [len(ours & theirs) for ours, theirs in itertools.combinations(drawn, 2)]
    # Two independent quarters of 400 share 25 images, give or take 4 (hypergeometric); one and the same, 100.
    assert max(overlaps) < 45
    assert min(overlaps) > 5


def test_folds_are_disjoint_cover_every_training_image_and_leave_the_test_split_alone():
    published = {"train": images("train", 23, 12)}
    folds = [split_up(published, fold=fold, num_folds=5, test_fraction=0.2)[0] for fold in range(5)]
    assert all(part["test"] == folds[0]["test"] for part in folds)
    assert set.union(*(part["val"] for part in folds)) == folds[0]["train"] | folds[0]["val"]
    assert sum(len(part["val"]) for part in folds) == 35 - len(folds[0]["test"])
    for part in folds:
        assert part["train"] | part["val"] | part["test"] == set(published["train"].names)
        assert not part["train"] & part["val"]


def test_a_fold_includes_the_published_val_split():
    published = {split: images(split, 10, 10) for split in ("train", "val", "test")}
    parts, drawn = split_up(published, fold=0, num_folds=4)
    assert drawn == ["val"]
    assert {name.split("/")[0] for name in parts["val"]} == {"train", "val"}
    assert parts["test"] == set(published["test"].names)


def test_folds_have_the_same_share_of_every_class_and_the_same_size():
    labels = np.repeat([0, 1, 2], [23, 11, 6])
    folds = stratified_folds(labels, 5, seed=0)
    by_class = np.array([np.bincount(folds[labels == label], minlength=5) for label in range(3)])
    assert (np.ptp(by_class, axis=1) <= 1).all()
    assert np.bincount(folds).tolist() == [8, 8, 8, 8, 8]


@pytest.mark.parametrize("sizes", [[50, 50], [70, 153], [400, 100, 20], [30] * 10, [1, 1, 98], [1] * 40])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_every_beginning_of_the_order_has_the_classes_in_their_shares(sizes: list[int], is_sorted: bool):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels if is_sorted else np.random.default_rng(0).permutation(labels)
    order = stratified_order(labels, seed=0)
    assert sorted(order.tolist()) == list(range(len(labels)))
    np.testing.assert_array_equal(order, stratified_order(labels, seed=0))
    assert not np.array_equal(order, stratified_order(labels, seed=1))
    counts = np.cumsum(np.eye(len(sizes))[labels[order]], axis=0)  # of each class in the first 1, 2, ... images
    expected = np.arange(1, len(labels) + 1)[:, None] * np.array(sizes) / len(labels)
    assert (abs(counts - expected) <= 0.5 + np.array(sizes) / len(labels) * len(sizes) / 2 + 1e-9).all()


def test_the_last_place_of_a_beginning_goes_to_every_class_equally_often():
    labels = np.repeat(np.arange(10), 20)
    extra = [labels[stratified_order(labels, seed)[20]] for seed in range(300)]
    assert min(np.bincount(extra, minlength=10)) > 10


def test_a_fold_that_leaves_a_class_without_training_images_is_refused():
    published = {"train": images("train", 10, 1), "test": images("test", 2, 2)}
    (fold,) = stratified_folds(published["train"].labels, 5, seed=0)[-1:]
    with pytest.raises(DataError, match="class 'bee' has a single training image"):
        split_up(published, fold=int(fold))


def test_a_split_file_cannot_make_a_published_test_image_a_training_image(tmp_path: Path):
    published = {"train": images("train", 10, 10), "test": images("test", 2, 2)}
    listed = tmp_path / "split.csv"
    listed.write_text("path,label,split\ntrain/0,ant,train\ntrain/11,bee,val\ntest/0,ant,train\n")
    with pytest.raises(DataError, match="split.csv.*test/0 is a test image of the dataset and cannot be train"):
        split_up(published, split_file=str(listed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with train/ and test/, each with three ants and three bees."""
    for name in (f"{split}/{label}/{n}.png" for split in ("train", "test") for label in NAMES for n in range(3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_split_file_cannot_make_a_test_image_a_training_image_by_another_spelling(folder: Path, is_absolute: bool):
    names, published, _ = list_image_folder(folder)
    prefix = f"{folder}/" if is_absolute else "./train/../"
    rows = [f"{prefix}{split}/{label}/0.png,{label},train" for split in ("train", "test") for label in NAMES]
    (folder / "split.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(DataError, match=r"line 4: test/ant/0.png is a test image of the dataset and cannot be train"):
        complete_splits(published, SplitPlan(split_file=f"{folder}/split.csv"), names)


def test_a_split_file_may_list_images_that_were_left_out_by_absolute_paths(folder: Path):
    names, published, _ = list_image_folder(folder)
    left_out = [published["train"].names[1]]
    published["train"] = published["train"].take(np.array([0, 2, 3, 4, 5]))
    listed = [(label, n) for label in NAMES for n in range(3)]
    rows = [f"{folder}/train/{label}/{n}.png,{label},{'val' if n == 2 else 'train'}" for label, n in listed]
    (folder / "split.csv").write_text("\n".join(["path,label,split", *rows]))
    plan = SplitPlan(split_file=f"{folder}/split.csv")
    splits, _ = complete_splits(published, plan, names, left_out)
    assert splits["train"].names == ("train/ant/0.png", "train/bee/0.png", "train/bee/1.png")
    everything = [f"train/{label}/{n}.png" for label, n in listed]
    with pytest.raises(DataError, match=r"^data.split_file=.*/split.csv: none of its images can be read"):
        complete_splits(published, plan, names, everything)


def test_the_folds_of_a_split_file_are_read_again_in_the_order_of_training(tmp_path: Path):
    """As eval.py does: from the list with the splits of the run, without `fold`."""
    published = {"train": images("train", 6, 6), "test": images("test", 2, 2)}

    def write(name: str, splits: dict[str, list[str]]) -> str:
        labels = dict(zip(published["train"].names, published["train"].labels.tolist(), strict=True))
        rows = [f"{image},{NAMES[labels[image]]},{split}" for split, names in splits.items() for image in names]
        (tmp_path / name).write_text("\n".join(["path,label,split", *rows]))
        return str(tmp_path / name)

    names = published["train"].names
    typed = write("typed.csv", {"train": names[4:], "val": names[:4]})
    of_run, _ = complete_splits(published, SplitPlan(split_file=typed, fold=1, num_folds=3), NAMES)
    own = write("split.csv", {split: list(getattr(of_run[split], "names", ())) for split in ("val", "train")})
    again, _ = complete_splits(published, SplitPlan(split_file=own), NAMES)
    assert {split: part.names for split, part in again.items()} == {s: part.names for s, part in of_run.items()}


def test_a_split_file_of_train_and_val_keeps_the_published_test_split(tmp_path: Path):
    published = {split: images(split, 10, 10) for split in ("train", "test")}
    listed = tmp_path / "split.csv"
    rows = [f"train/{n},{NAMES[n // 10]},{'val' if n % 5 == 0 else 'train'}" for n in range(20)]
    listed.write_text("\n".join(["path,label,split", *rows]))
    parts, drawn = split_up(published, split_file=str(listed))
    assert drawn == []
    assert parts["test"] == set(published["test"].names)
    assert parts["val"] == {"train/0", "train/5", "train/10", "train/15"}


def test_a_dataset_without_test_split_needs_test_fraction():
    with pytest.raises(ConfigError, match="no test split; set the share to split off: data.test_fraction=0.1"):
        split_up({"train": images("train", 10, 10)})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"fold": 5}, r"data.fold=5 must be in 0 .. 4 .* -m 'data.fold=range\(5\)'"),
        ({"fold": -1}, "data.fold=-1 must be in 0"),
        ({"num_folds": 1}, "data.num_folds=1 must be 2 or more"),
        ({"val_fraction": 0.0}, "data.val_fraction=0.0 and"),
        ({"test_fraction": 0.0}, "data.test_fraction=0.0 must be greater than 0"),
        ({"test_fraction": -0.1}, "data.test_fraction=-0.1 must be greater than 0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "together less than 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        SplitPlan(**settings)


@pytest.mark.parametrize(
    ("splits", "fault"), [(("train", "val", "test"), "there is a test split"), (("train",), "there is no val split")]
)
def test_val_as_test_without_effect_is_refused(splits: tuple[str, ...], fault: str):
    with pytest.raises(ConfigError, match=f"^data.val_as_test=true: {fault} in this dataset; leave the setting out.$"):
        split_up({split: images(split, 5, 5) for split in splits}, val_as_test=True)


def test_one_image_of_each_class_is_too_few_to_split():
    with pytest.raises(DataError, match="2 training images are too few to split test off; add images of each"):
        split_up({"train": images("train", 1, 1)}, test_fraction=0.1)


def test_the_drawn_splits_are_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        split_up({"train": images("train", 20, 20)}, fold=1, num_folds=4, test_fraction=0.1)
    assert "split off the 40 training images, stratified: 4 for test and 9 for val (fold 1 of 4)" in caplog.text


# Only evaluated


@pytest.mark.parametrize(
    ("published", "only", "expected"),
    [
        (("test",), "test", {"train": 0, "val": 0, "test": 2}),
        (("val",), "all", {"train": 0, "val": 2, "test": 0}),
        (("train",), "all", {"train": 2, "val": 0, "test": 0}),
        (("train", "val"), "val", {"train": 2, "val": 2, "test": 0}),
    ],
)
def test_no_split_is_drawn_where_only_one_or_all_are_evaluated(published, only: str, expected: dict[str, int]):
    splits, drawn = complete_splits({name: images(name, 1, 1) for name in published}, SplitPlan(), NAMES, only=only)
    assert ({name: len(split) for name, split in splits.items()}, drawn) == (expected, [])


@pytest.mark.parametrize("only", [None, "test"])
def test_a_dataset_without_the_training_images_that_are_needed_is_refused(only: str | None, tmp_path: Path):
    with pytest.raises(DataError, match="^the dataset has no images of train, only of val; assign some, or evaluate s"):
        complete_splits({"val": images("val", 1, 1)}, SplitPlan(), NAMES, only=only)
    (tmp_path / "list.csv").write_text("path,label,split\ntrain/0,ant,val\n")
    with pytest.raises(DataError, match=r"^\S+list.csv has no images of train, only of val"):
        split_up({"train": images("train", 1, 1)}, split_file=str(tmp_path / "list.csv"))


# Splits that cannot be used


def test_a_dataset_without_any_training_image_is_refused():
    with pytest.raises(DataError, match="the train split has no images"):
        split_up({"train": images("train", 0, 0)}, test_fraction=0.1)


def test_more_folds_than_images_are_refused():
    with pytest.raises(DataError, match="data.fold=4: 4 training images are too few for 5 folds"):
        split_up({"train": images("train", 2, 2), "test": images("test", 1, 1)}, fold=4)


@pytest.mark.parametrize(
    ("labels", "class_names", "fault"),
    [
        ([0, 0], ["dataset"], r"has the classes \['dataset'\]; a classifier needs at least 2"),
        ([], ["a", "b"], "the val split has no images"),
        ([0, 2], ["a", "b"], r"val split has labels from 0 to 2; with 2 classes they must be in 0 \.\. 1"),
        ([-100, -100], ["a", "b"], "val split has labels from -100 to -100"),
        ([0, 1], ["a", "b", "c"], "the dataset has no training images of class 'c' that can be read; add some"),
    ],
)
def test_splits_that_cannot_be_trained_on_or_tested_are_refused(labels: list[int], class_names: list[str], fault: str):
    val = LabeledArray(np.zeros((len(labels), 3, 2, 2), np.uint8), np.array(labels, np.int64), ("",) * len(labels))
    train = images("train", 2, 2)
    with pytest.raises(DataError, match=fault):
        complete_splits({"train": train, "val": val, "test": train}, SplitPlan(), class_names)


# training_part


def test_a_share_of_the_training_images_is_stratified_and_part_of_a_larger_share():
    train = images("train", 300, 61)
    before: set[str] = set()
    for fraction, counts in ((0.001, [1, 1]), (0.1, [30, 6]), (0.2, [60, 12]), (0.5, [150, 30]), (1.0, [300, 61])):
        part = training_part(train, SplitPlan(train_fraction=fraction))
        assert np.bincount(part.labels).tolist() == counts
        assert before <= set(part.names)
        before = set(part.names)
    other = training_part(train, SplitPlan(train_fraction=0.1, split_seed=1))
    assert set(other.names) != set(training_part(train, SplitPlan(train_fraction=0.1)).names)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_a_share_of_the_training_images_is_above_0_and_at_most_1(fraction: float):
    with pytest.raises(ConfigError, match=f"data.train_fraction={fraction} must be above 0 and at most 1, e.g. 0.1."):
        SplitPlan(train_fraction=fraction)


def test_indices_are_evenly_spread_and_all_are_taken_below_the_limit():
    assert [evenly_spread(*numbers).tolist() for numbers in ((10, 4), (3, 5), (0, 5), (5, 1))] == [
        [0, 2, 5, 7],
        [0, 1, 2],
        [],
        [0],
    ]
