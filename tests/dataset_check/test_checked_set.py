"""Counts, leaks, conflicts, statistics and findings of a small set are those computed by hand."""

import numpy as np
import pytest
from drawn_images import photo, records_of

from imago.data.examine import Examination
from imago.dataset_check.checked_set import CheckedSet
from imago.dataset_check.findings import find
from imago.images import FORMATS

SPLITS = ("train", "val", "test")


def checked_set(rows: list[tuple[int, str, int]], bad: tuple[int, ...] = ()) -> CheckedSet:
    """Return a set of two classes from rows (which image, split, label), in the order of the splits."""
    records = records_of(*(photo(image, 16) for image, _, _ in rows))
    errors = tuple("is empty" if index in bad else "" for index in range(len(rows)))
    records[list(bad)] = 0
    return CheckedSet(
        ("ant", "bee"),
        SPLITS,
        tuple(f"{index}.png" for index in range(len(rows))),
        np.array([SPLITS.index(split) for _, split, _ in rows]),
        np.array([label for _, _, label in rows]),
        Examination(records, errors),
    )


# Image 0 is in train twice and in test, 1 in train and val, 2 in two classes; 3 to 8 occur once.
ROWS = [
    *((0, "train", 0), (0, "train", 0), (1, "train", 0), (2, "train", 0), (2, "train", 1), (3, "train", 1)),
    *((1, "val", 0), (4, "val", 1), (5, "val", 1)),
    *((0, "test", 0), (6, "test", 1), (7, "test", 0), (8, "test", 1)),
]


def test_counts_are_by_class_and_split_and_leave_bad_images_out():
    assert checked_set(ROWS).counts.tolist() == [[4, 1, 2], [2, 2, 2]]
    assert checked_set(ROWS, bad=(0, 12)).counts.tolist() == [[3, 1, 2], [2, 2, 1]]


def test_leaks_are_found_for_each_pair_of_splits():
    checked = checked_set(ROWS)
    assert checked.leaked("test", "train").tolist() == [9]
    assert checked.leaked("val", "train").tolist() == [6]
    assert checked.leaked("test", "val").tolist() == []


def test_the_same_image_in_two_classes_is_a_conflict_and_in_one_a_repeat():
    checked = checked_set(ROWS)
    assert [group.tolist() for group in checked.conflicts] == [[3, 4]]
    assert checked.repeats.tolist() == [1]


def test_without_leaks_the_test_images_stay_and_their_duplicates_are_left_out():
    checked = checked_set(ROWS)
    kept = checked.without_leaks()
    assert kept.tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    again = checked_set([ROWS[index] for index in kept])
    assert not any(len(again.leaked(*pair)) for pair in (("test", "train"), ("val", "train"), ("test", "val")))


def test_bad_images_have_no_duplicates():
    checked = checked_set(ROWS, bad=(0, 1, 9))
    assert checked.leaked("test", "train").tolist() == []
    assert checked.bad.tolist() == [0, 1, 9]
    assert 9 not in checked.without_leaks()


def test_statistics_are_those_of_the_pixels_of_the_split():
    mean, std = checked_set(ROWS, bad=(5,)).channel_statistics("train")
    pixels = np.stack([photo(image, 16) for image, split, _ in ROWS[:5] if split == "train"]) / 255
    assert mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-6)
    assert std == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-6)


def test_serious_findings_come_first_and_say_what_to_do():
    findings = find(checked_set(ROWS, bad=(5,)), num_ignored=3, num_left_out=0)
    kinds = ["bad images", "test in train", "val in train", "label conflicts", "repeats", "imbalance"]
    assert [finding.kind for finding in findings] == [*kinds, "small test", "ignored"]
    assert [finding.is_serious for finding in findings] == [True] * 4 + [False] * 4
    assert findings[0].text == "1 of 13 images cannot be read"
    assert "data.on_bad_image=skip" in findings[0].remedy
    assert findings[1].text == "1 of 4 test images have an exact or near duplicate in train"
    assert "'ant' has 4.0 times as many training images as 'bee'" in findings[5].text
    assert "data.sampler=balanced" in findings[5].remedy


def test_a_balanced_set_without_duplicates_has_no_serious_finding():
    rows = [(number, split, number % 2) for number, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4)]
    assert [finding.kind for finding in find(checked_set(rows), 0, 0)] == ["small test"]


def test_images_that_are_skipped_on_purpose_are_reported_and_not_serious():
    findings = find(checked_set(ROWS[:1] + ROWS[5:6] + ROWS[7:]), num_ignored=0, num_left_out=2)
    assert findings[0].text == "2 images cannot be read and are left out, as data.on_bad_image=skip says"
    assert not findings[0].is_serious


def test_a_format_that_one_image_in_a_hundred_has_is_named_with_that_image():
    checked = checked_set([(number % 5, "train", number % 2) for number in range(150)])
    checked.examined.records["format"] = FORMATS.index("JPEG")
    assert checked.rare_formats() == {}
    checked.examined.records["format"][7] = FORMATS.index("GIF")
    assert checked.rare_formats() == {"GIF": "7.png"}


def test_leaks_stay_if_a_class_would_lose_its_last_training_image():
    assert checked_set(ROWS).can_leave_leaks_out
    rows = [(0, "train", 0), (1, "train", 1), (2, "val", 0), (3, "val", 1), (0, "test", 0), (4, "test", 1)]
    assert not checked_set(rows).can_leave_leaks_out
