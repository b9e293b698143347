"""Counts, leaks, conflicts and statistics of a small set are those computed by hand."""

import numpy as np
import pytest
from checked_datasets import ROWS, checked_dataset
from drawn_images import photo


def test_counts_are_by_class_and_split_and_leave_bad_images_out():
    assert checked_dataset(ROWS).counts.tolist() == [[4, 1, 2], [2, 2, 2]]
    assert checked_dataset(ROWS, bad=(0, 12)).counts.tolist() == [[3, 1, 2], [2, 2, 1]]


def test_leaks_are_found_for_each_pair_of_splits():
    checked = checked_dataset(ROWS)
    assert checked.leaked("test", "train").tolist() == [9]
    assert checked.leaked("val", "train").tolist() == [6]
    assert checked.leaked("test", "val").tolist() == []


def test_the_same_image_in_two_classes_is_a_conflict_and_in_one_a_repeat():
    checked = checked_dataset(ROWS)
    (pair,) = checked.conflicts
    assert (checked.pairs.first[pair], checked.pairs.second[pair]) == (3, 4)
    assert checked.duplicates_within_split.tolist() == [1]


def test_without_leaks_the_test_images_stay_and_their_duplicates_are_left_out():
    checked = checked_dataset(ROWS)
    kept = checked.without_leaks
    assert kept.tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    again = checked_dataset([ROWS[index] for index in kept])
    assert not any(len(again.leaked(*pair)) for pair in (("test", "train"), ("val", "train"), ("test", "val")))


def test_bad_images_have_no_duplicates():
    checked = checked_dataset(ROWS, bad=(0, 1, 9))
    assert checked.leaked("test", "train").tolist() == []
    assert checked.bad_indices.tolist() == [0, 1, 9]
    assert 9 not in checked.without_leaks


def test_statistics_are_those_of_the_pixels_of_the_split():
    mean, std = checked_dataset(ROWS, bad=(5,)).train_statistics
    pixels = np.stack([photo(image, 16) for image, split, _ in ROWS[:5] if split == "train"]) / 255
    assert mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-6)
    assert std == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-6)


def test_leaks_cannot_be_left_out_if_a_class_would_lose_its_last_training_image():
    assert checked_dataset(ROWS).can_remove_leaks
    rows = [(0, "train", 0), (1, "train", 1), (2, "val", 0), (3, "val", 1), (0, "test", 0), (4, "test", 1)]
    assert not checked_dataset(rows).can_remove_leaks
