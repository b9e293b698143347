"""The printed tables, check.json and the CSV files hold the same numbers, for any names."""

import csv
import json
import os
from pathlib import Path

from checked_datasets import ROWS, checked_dataset

from imago.dataset_check import report
from imago.dataset_check.findings import Finding, list_findings
from imago.text import display_width


def rows(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return list(csv.reader(lines))


def test_the_table_has_a_line_for_each_class_with_a_bar_in_proportion():
    lines = report.class_table(checked_dataset([*[(0, "train", 0)] * 8, *[(0, "val", 1)] * 2]))
    assert lines[0].split() == ["class", "train", "val", "test", "all"]
    assert lines[2].split() == ["ant", "8", "0", "0", "8", "#" * 20]
    assert lines[3].split() == ["bee", "0", "2", "0", "2", "#" * 5]
    assert lines[4].split() == ["all", "8", "2", "0", "10"]


def test_of_many_classes_the_largest_and_the_smallest_are_shown():
    rows = [(0, "train", label) for label in range(30) for _ in range(label + 1)]
    lines = report.class_table(checked_dataset(rows, class_names=tuple(f"c{label}" for label in range(30))))
    shown = [line.split()[0] for line in lines[2:-1]]
    assert shown == [*(f"c{label}" for label in range(29, 19, -1)), "...", *(f"c{label}" for label in range(9, -1, -1))]
    assert "... 10 classes between these" in lines[12]


def test_columns_are_aligned_for_every_script():
    names = ("ant", "猫猫", "line\nbreak", "x" * 50)
    lines = report.class_table(checked_dataset([(0, "train", label) for label in range(4)], class_names=names))
    assert len({display_width(line[: line.rindex("#" * 20)]) for line in lines[2:-1]}) == 1
    assert any("line\\nbreak" in line for line in lines)


def test_the_summary_and_the_json_hold_the_same_numbers():
    checked = checked_dataset(ROWS, bad=(5,))
    text = "\n".join(report.summary_lines(checked, "32 px"))
    content = json.loads(json.dumps(report.as_json(checked, list_findings(checked, 1, 0))))
    assert content["classes"] == {"ant": {"train": 4, "val": 1, "test": 2}, "bee": {"train": 1, "val": 2, "test": 2}}
    assert content["sizes"] == {"min": [16, 16], "median": [16, 16], "max": [16, 16]}
    assert "min 16x16, median 16x16, max 16x16" in text
    assert content["formats"] == {"in memory": 12}
    mean = " ".join(f"{value:.3f}" for value in content["channel_statistics"]["mean"])
    assert f"statistics  mean {mean}" in text
    assert f"{content['duplicates']['num_pairs_same_bytes']} pairs with the same bytes, 0 nearly" in text
    assert {"val in train", "ignored"} < {finding["kind"] for finding in content["findings"]}


def test_csv_files_hold_every_name_as_it_is_on_disk(tmp_path: Path):
    odd = os.fsdecode(b'\xff, "quoted".png')
    rows_of_set = [(0, "train", 0), (0, "train", 0), (1, "train", 1)]
    checked = checked_dataset(rows_of_set, bad=(2,), names=(odd, "b.png", "c.png"))
    report.write_duplicates(tmp_path / "duplicates.csv", checked)
    header, line = rows(tmp_path / "duplicates.csv")
    assert header == ["group", "kind", "correlation", *(f"{c}_{e}" for e in "ab" for c in ("path", "split", "class"))]
    assert line == ["1", "same bytes", "1.000", odd, "train", "ant", "b.png", "train", "ant"]
    report.write_bad_images(tmp_path / "bad.csv", checked, [("gone.png", "is empty")])
    assert rows(tmp_path / "bad.csv")[1:] == [["c.png", "train", "bee", "is empty"], ["gone.png", "", "", "is empty"]]


def test_serious_findings_are_marked():
    findings = [Finding("a", "text", "remedy", is_serious=True), Finding("b", "other", "none")]
    assert report.finding_lines(findings) == ["! 1. text", "     remedy", "  2. other", "     none"]
    assert report.finding_lines([]) == ["no problems found"]
