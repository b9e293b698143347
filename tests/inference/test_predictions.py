"""The table, the CSV and the JSON of predictions agree, whatever the names of the files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from imago.errors import DataError
from imago.inference.predictions import Prediction, prediction_lines, write_predictions


def prediction(name: str, predicted: str | None = "a") -> Prediction:
    return Prediction(Path(name), [("a", 0.75), ("b", 0.25)], predicted)


def test_csv_and_json_have_the_same_predictions_and_the_json_the_unreadable_images(tmp_path: Path):
    answers = [prediction("x.png"), prediction("y.png", None)]
    bad = [(Path("z.png"), "z.png is empty")]
    write_predictions(tmp_path / "new" / "out.csv", answers, bad, {"model": "m"})
    assert (tmp_path / "new" / "out.csv").read_text().splitlines() == [
        "file,predicted,class_1,probability_1,class_2,probability_2",
        "x.png,a,a,0.750000,b,0.250000",
        "y.png,,a,0.750000,b,0.250000",
    ]
    top = [{"class": "a", "probability": 0.75}, {"class": "b", "probability": 0.25}]
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == {
        "model": "m",
        "predictions": [
            {"file": "x.png", "predicted": "a", "top_k": top},
            {"file": "y.png", "predicted": None, "top_k": top},
        ],
        "bad": [{"file": "z.png", "reason": "z.png is empty"}],
    }
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"out.csv", "out.json"}


def test_prediction_sets_are_columns_and_lists_and_short_ones_are_shown(tmp_path: Path):
    long = {"90": ["a", "b", "c", "d"], "95": ["a", "b", "c", "d"]}
    found = [
        replace(prediction("x.png"), sets={"90": ["a"], "95": ["a", "b"]}),
        replace(prediction("y.png"), sets=long),
    ]
    write_predictions(tmp_path / "out.csv", found, [], {})
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "file,predicted,class_1,probability_1,class_2,probability_2,set_90,set_95",
        "x.png,a,a,0.750000,b,0.250000,a,a; b",
        "y.png,a,a,0.750000,b,0.250000,a; b; c; d,a; b; c; d",
    ]
    records = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [record["sets"] for record in records] == [{"90": ["a"], "95": ["a", "b"]}, long]
    _, _, first, second = prediction_lines(found)
    assert first.endswith("b 25.0%   90 % set: a")
    assert second.endswith("b 25.0%")


def test_images_unlike_those_of_the_training_are_marked(tmp_path: Path):
    found = [replace(prediction("x.png"), score=0.25), replace(prediction("y.png"), score=-0.25)]
    write_predictions(tmp_path / "out.csv", found, [], {})
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "file,predicted,class_1,probability_1,class_2,probability_2,unlike_training",
        "x.png,a,a,0.750000,b,0.250000,false",
        "y.png,a,a,0.750000,b,0.250000,true",
    ]
    records = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [record["unlike_training"] for record in records] == [False, True]
    _, _, first, second = prediction_lines(found)
    assert first.endswith("b 25.0%")
    assert second.endswith("b 25.0%   unlike the training images")


def test_a_file_name_that_is_not_utf8_is_written_as_its_own_bytes(tmp_path: Path):
    name = os.fsdecode(b"latin\xe9.png")
    write_predictions(tmp_path / "out.csv", [Prediction(Path(name), [("a", 1.0)], "a")], [], {})
    expected = b"file,predicted,class_1,probability_1\nlatin\xe9.png,a,a,1.000000\n"
    assert (tmp_path / "out.csv").read_bytes() == expected
    assert json.loads((tmp_path / "out.json").read_text())["predictions"][0]["file"] == name


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"out.csv cannot be written: .+; choose another file with output="):
        write_predictions(tmp_path / "file" / "out.csv", [], [], {})


def test_the_table_shows_all_classes_of_an_image_without_an_answer():
    lines = prediction_lines([prediction("x.png"), prediction("a\nb.png", None)])
    assert lines[2].split() == ["x.png", "a", "75.00%", "b", "25.0%"]
    assert lines[3].split() == [r"a\nb.png", "(below", "threshold)", "75.00%", "a", "75.0%,", "b", "25.0%"]


def test_the_table_shows_the_first_twenty_images():
    lines = prediction_lines([prediction(f"{number}.png") for number in range(30)])
    assert len(lines) == 23
    assert lines[-1] == "... and 10 more"


def test_class_names_cannot_control_the_terminal():
    odd = Prediction(Path("x.png"), [("a\x1b[2J", 0.75), ("b\nc", 0.25)], "a\x1b[2J")
    lines = prediction_lines([odd])
    assert len(lines) == 3
    assert "".join(lines).isprintable()
    assert r"a\x1b[2J" in lines[2]
    assert r"b\nc 25.0%" in lines[2]
