"""The printed tables, check.json and the CSV files hold the same numbers, for any names."""

import csv
import json
import os
from pathlib import Path

import numpy as np
from drawn_images import photo, records_of

from imago.data.examine import Examination
from imago.dataset_check import report
from imago.dataset_check.checked_set import CheckedSet
from imago.dataset_check.findings import find
from imago.text import display_width


def checked_set(class_names: tuple[str, ...], counts: list[int], names: tuple[str, ...] = ()) -> CheckedSet:
    """Return a set of training images, all with the same pixels; `counts` of each class."""
    total = sum(counts)
    records = np.repeat(records_of(photo(0, 4)), total)
    records["content_hash"] = np.arange(total)
    records["thumbnail"] = 0
    return CheckedSet(
        class_names,
        ("train", "val", "test"),
        names or tuple(map(str, range(total))),
        np.zeros(total, np.int64),
        np.repeat(np.arange(len(counts)), counts),
        Examination(records, ("",) * total),
    )


def rows(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return list(csv.reader(lines))


def test_the_table_has_a_line_for_each_class_with_a_bar_in_proportion():
    lines = report.class_table(checked_set(("ant", "bee"), [40, 10]))
    assert lines[0].split() == ["class", "train", "val", "test", "all"]
    assert lines[1].split() == ["ant", "40", "0", "0", "40", "#" * 20]
    assert lines[2].split() == ["bee", "10", "0", "0", "10", "#" * 5]
    assert lines[3].split() == ["all", "50", "0", "0", "50"]


def test_of_many_classes_the_largest_and_the_smallest_are_shown():
    lines = report.class_table(checked_set(tuple(f"c{k}" for k in range(50)), list(range(1, 51))))
    shown = [line.split()[0] for line in lines[1:-1]]
    assert shown == [*(f"c{k}" for k in range(49, 39, -1)), "...", *(f"c{k}" for k in range(9, -1, -1))]
    assert "... 30 classes between these" in lines[11]


def test_columns_are_aligned_for_every_script():
    lines = report.class_table(checked_set(("ant", "猫猫", "line\nbreak", "x" * 200), [1, 1, 1, 1]))
    columns = {display_width(line[: line.rindex("#" * 20)]) for line in lines[1:-1]}
    assert len(columns) == 1
    assert max(map(display_width, lines)) < 120
    assert any("line\\nbreak" in line for line in lines)


def test_the_summary_and_the_json_hold_the_same_numbers():
    checked = checked_set(("ant", "bee"), [40, 10])
    text = "\n".join(report.summary_lines(checked, [("a\nb.txt", "no image")], "32 px"))
    assert "min 4x4, median 4x4, max 4x4" in text
    assert "1 files or folders, e.g. a\\nb.txt (no image)" in text
    content = json.loads(json.dumps(report.as_json(checked, find(checked, 1, 0))))
    assert content["classes"] == {"ant": {"train": 40, "val": 0, "test": 0}, "bee": {"train": 10, "val": 0, "test": 0}}
    assert content["sizes"] == {"min": [4, 4], "median": [4, 4], "max": [4, 4]}
    mean = " ".join(f"{value:.3f}" for value in content["channel_statistics"]["mean"])
    assert f"statistics  mean {mean}" in text
    assert [finding["kind"] for finding in content["findings"]] == [
        "empty classes",
        "imbalance",
        "small test",
        "ignored",
    ]


def test_csv_files_hold_every_name_as_it_is_on_disk(tmp_path: Path):
    odd = os.fsdecode(b'\xff, "quoted".png')
    whole = checked_set(("ant", "bee"), [2, 1], names=(odd, "b.png", "c.png"))
    records = whole.examined.records
    records["content_hash"] = [5, 5, 6]
    checked = CheckedSet(
        whole.class_names,
        whole.split_names,
        whole.names,
        whole.splits,
        whole.labels,
        Examination(records, ("", "", "bad")),
    )
    report.write_duplicates(tmp_path / "duplicates.csv", checked)
    header, line = rows(tmp_path / "duplicates.csv")
    assert header == ["group", "kind", "correlation", *(f"{c}_{e}" for e in "ab" for c in ("path", "split", "class"))]
    assert line == ["1", "same bytes", "1.000", odd, "train", "ant", "b.png", "train", "ant"]
    report.write_bad_images(tmp_path / "bad.csv", checked, [("gone.png", "is empty")])
    assert rows(tmp_path / "bad.csv")[1:] == [["c.png", "train", "bee", "bad"], ["gone.png", "", "", "is empty"]]


def test_serious_findings_are_marked():
    checked = checked_set(("ant", "bee"), [2, 2])
    bad = CheckedSet(
        checked.class_names, checked.split_names, checked.names, checked.splits, checked.labels,
        Examination(checked.examined.records, ("", "is empty", "", "")),
    )  # fmt: skip
    lines = report.finding_lines(find(bad, 0, 0))
    assert lines[0] == "! 1. 1 of 4 images cannot be read"
    assert lines[2].startswith("  2. ")
    assert report.finding_lines([]) == ["no problems found"]
