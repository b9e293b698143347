"""Findings say what is wrong with a dataset, the serious ones first, and what to do about it."""

from dataclasses import replace

import numpy as np
from checked_datasets import ROWS, checked_dataset
from drawn_images import photo, records_of

from imago.data.examine import Examination
from imago.data.image_record import KINDS
from imago.dataset_check.findings import list_findings
from imago.dataset_check.report import summary_lines

SOUND = [(number, split, number % 2) for number, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4)]


def test_serious_findings_come_first_and_say_what_to_do():
    findings = list_findings(checked_dataset(ROWS, bad=(5,)), num_ignored=3, num_left_out=0)
    kinds = ["bad images", "test in train", "val in train", "label conflicts", "repeats", "imbalance"]
    assert [finding.kind for finding in findings] == [*kinds, "small test", "ignored"]
    assert [finding.is_serious for finding in findings] == [True] * 4 + [False] * 4
    assert findings[0].text == "1 of 13 images cannot be read: 5.png"
    assert "data.on_bad_image=skip" in findings[0].remedy
    assert findings[1].text == "1 of 4 test images has an exact or near duplicate in train"
    assert findings[3].text == "1 x exact or near duplicates in different classes, e.g. in 'ant' and 'bee'"
    assert "'ant' has 4.0 times as many training images as 'bee'" in findings[5].text
    assert "data.sampler=balanced" in findings[5].remedy


def test_a_balanced_set_without_duplicates_has_no_serious_finding():
    assert [finding.kind for finding in list_findings(checked_dataset(SOUND), 0, 0)] == ["small test"]


def test_images_that_are_skipped_on_purpose_are_reported_and_not_serious():
    first = list_findings(checked_dataset(SOUND), num_ignored=0, num_left_out=2)[0]
    assert first.text == "2 images that cannot be read are left out because of data.on_bad_image=skip"
    assert not first.is_serious


def test_a_class_without_images_in_a_split_and_unusual_kinds_are_named():
    checked = checked_dataset(SOUND[:-1], bad=(13,))
    checked.examined.records["kinds"][:2] = 1 << KINDS.index("16-bit")
    texts = [finding.text for finding in list_findings(checked, 0, 0)]
    assert "1 class has a split without an image, e.g. 'bee' none in test" in texts
    assert texts[-1] == "2 images are 16-bit"


def test_groups_that_two_splits_share_are_a_leak_and_left_out_of_the_first():
    rows = [(image, split, image % 2) for image, split in enumerate(("train",) * 5 + ("val",) * 2 + ("test",) * 2)]
    groups = np.array(["p1", "p2", "p3", "p3", "p6", "p4", "p2", "p1", "p5"])
    checked = replace(checked_dataset(rows), named_groups=groups, grouping="data.group_by=patient")
    found = [finding for finding in list_findings(checked, 0, 0) if finding.kind.startswith("groups")]
    assert [(finding.kind, finding.text, finding.is_serious) for finding in found] == [
        ("groups of test in train", "1 group of data.group_by=patient, p1, is in both train and test", True),
        ("groups of val in train", "1 group of data.group_by=patient, p2, is in both train and val", True),
    ]
    assert checked.without_leaks.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert checked.has_leaks
    assert {finding.remedy for finding in found} == {
        "data.split_file with split_without_leaks.csv leaves them out of all but one split"
    }
    everywhere = replace(checked, named_groups=np.full(9, "p1"))
    (first, *_) = (finding for finding in list_findings(everywhere, 0, 0) if finding.kind.startswith("groups"))
    assert first.remedy == "leaving them all out would leave a class without training images"
    assert any(
        line.startswith("groups      6 of data.group_by=patient, with 1 to 2") for line in summary_lines(checked, "")
    )


def test_groups_are_suggested_if_many_images_are_nearly_the_same():
    records = np.concatenate([records_of(photo(number // 2, 16 + 8 * (number % 2))) for number in range(12)])
    rows = [(number, "train", number // 2 % 2) for number in range(12)]
    checked = replace(checked_dataset(rows), examined=Examination(records, ("",) * 12))
    [found] = [finding for finding in list_findings(checked, 0, 0) if finding.kind == "related"]
    assert found.text == "12 of 12 images are nearly the same as another one of their class"
    assert "data.group_pattern=REGEX or, in a list, data.group_by=COLUMN keeps these whole" in found.remedy
    assert not found.is_serious
    assert not [finding for finding in list_findings(checked_dataset(rows), 0, 0) if finding.kind == "related"]
