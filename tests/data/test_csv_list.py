"""CSV lists of images are read however they were written, and refused with the line; class names compare."""

import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from imago.data.csv_list import (
    COLUMNS,
    assign_splits,
    check_class_names,
    class_key,
    files_from_list,
    find_labels,
    read_list,
    rows_by_dataset_name,
)
from imago.data.dataset import LabeledArray
from imago.errors import DataError
from imago.files import write_csv

CLASSES = ("ants", "bees")


def listed(folder: Path, text: str | bytes) -> Path:
    file = folder / "list.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def rows_of(folder: Path, text: str | bytes) -> list[tuple[str, str, str]]:
    return [(row.name, row.label, row.split) for row in read_list(listed(folder, text))]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def error_of(function, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


def array(labels: list[int], names: list[str]) -> LabeledArray:
    """Return images in memory; the first pixel of each is its index."""
    images = np.arange(len(labels), dtype=np.uint8).repeat(3).reshape(-1, 3, 1, 1)
    return LabeledArray(images, np.array(labels, np.int64), tuple(names))


# Class names


@pytest.mark.parametrize(
    ("one", "other"),
    [("cat", "cat "), ("café", unicodedata.normalize("NFD", "café")), ("Café ", unicodedata.normalize("NFD", "Café"))],
)
def test_class_names_that_look_the_same_are_refused(one: str, other: str):
    assert class_key(one) == class_key(other)
    error = error_of(check_class_names, [one, "dog", other], "list.csv: the labels")
    assert error == f"list.csv: the labels {one!a} and {other!a} look the same; merge or rename them."


def test_class_names_that_look_different_pass(caplog):
    check_class_names(["cat", "cats", "кот", "1", "01", "c a t"], "list.csv: the labels")
    assert caplog.text == ""


def test_names_that_differ_in_case_are_two_classes_and_a_unique_one_is_found_in_any_case(caplog):
    names = ["Cardigan", "cardigan", "Straße"]
    check_class_names(names, "list.csv: the labels")
    assert "list.csv: the labels Cardigan differ from others in case only" in caplog.text
    typed = ("Cardigan", "cardigan", "CARDIGAN", "STRASSE", "straße ", "cat")
    assert find_labels(typed, names) == [0, 1, None, 2, 2, None]


# Reading


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\na.jpg,ants,train\nb.jpg,bees,val\n",
        "path,label,split\r\na.jpg,ants,train\r\nb.jpg,bees,val\r\n",
        "\ufeffpath,label,split\na.jpg,ants,train\nb.jpg,bees,val",
        '"path","label","split"\n"a.jpg","ants","train"\n"b.jpg","bees","val"\n',
        "split,label,path\ntrain,ants,a.jpg\nval,bees,b.jpg\n",
        "\n Path , Label, SPLIT\n\n./a.jpg, ants , train\n,,\nb.jpg, bees, val\n\n",
        "id,filename,class,subset,width\n7,a.jpg,ants,train,80\n8,b.jpg,bees,val,90\n",
        ",filename,class,split\n0,a.jpg,ants,train\n1,b.jpg,bees,val\n",
        "image,category,class_name,split\na.jpg,1,ants,train\nb.jpg,2,bees,val\n",
        "path;label;split\na.jpg;ants;train\nb.jpg;bees;val\n",
        "path\tlabel\tsplit\r\na.jpg\tants\ttrain\r\nb.jpg\tbees\tval\r\n".encode("utf-16"),
        b"\xfe\xff" + "path,label,split\na.jpg,ants,train\nb.jpg,bees,val\n".encode("utf-16-be"),
    ],
    ids=[
        *(
            "plain",
            "CRLF",
            "byte order mark",
            "quotes",
            "other order",
            "blanks",
            "other names",
            "index of pandas",
            "two labels",
        ),
        *("semicolons", "Unicode text of Excel", "big endian"),
    ],
)
def test_lists_are_read_however_they_were_written(tmp_path: Path, text: str | bytes):
    assert rows_of(tmp_path, text) == [("a.jpg", "ants", "train"), ("b.jpg", "bees", "val")]


def test_a_column_without_a_name_is_not_the_split(tmp_path: Path):
    assert rows_of(tmp_path, ",path,label\n0,a.jpg,ants\n1,b.jpg,bees\n") == [
        ("a.jpg", "ants", ""),
        ("b.jpg", "bees", ""),
    ]


def test_names_may_hold_what_file_systems_allow(tmp_path: Path):
    text = 'path,label\n"a, b.jpg",ants\n"say ""hi"".jpg",ants\n"two\nlines.jpg",ants\nünï 😀.jpg,ants\n x .jpg,ants\n'
    names = [name for name, _, _ in rows_of(tmp_path, text)]
    assert names == ["a, b.jpg", 'say "hi".jpg', "two\nlines.jpg", "ünï 😀.jpg", " x .jpg"]


def test_lines_are_counted_from_1_with_blank_ones_and_line_ends_in_names(tmp_path: Path):
    rows = read_list(listed(tmp_path, 'path,label\n\n"two\nlines.jpg",ants\nc.jpg,ants\n'))
    assert [row.location for row in rows] == [f"{tmp_path}/list.csv, line {line}" for line in (4, 5)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ", line 1: expected a first line path,label or path,label,split, got nothing."),
        ("path,spilt\na.jpg,val\n", ", line 1: expected a first line path,label or path,label,split, got path,spilt."),
        ("path,label,spilt\na.jpg,ants,val\n", ", line 1: the column spilt holds splits; call it split."),
        (b"\xff\xfep\0a", " is damaged UTF-16 text ("),
        ("path,label\n\n", " has no images below its first line; add one line for each."),
        ("path,label\na.jpg,ants\nb.jpg\n", ", line 3: expected 2 columns, got 1; put names with commas in quotes."),
        ("path,label\na.jpg, \n", ", line 2: the label is empty; write the class of the image."),
        ("path,label\n,ants\n", ", line 2: '' is not a file name; write a path relative to data.root."),
        (
            "path,label\na\0.jpg,ants\n",
            r", line 2: 'a\x00.jpg' is not a file name; write a path relative to data.root.",
        ),
        ("path,label,split\na.jpg,ants,dev\n", ", line 2: split=dev is not one of train, val, test."),
        (
            "path,label\na.jpg,ants\nb.jpg,ants\n./a.jpg,bees\n",
            ", line 4: a.jpg is listed twice, first in line 2; delete one.",
        ),
        ('path,label\n"a.jpg,ants\n', ", line 2 is not CSV: unexpected end of data; check its quotation marks."),
        (
            "path,label\na.jpg,é\nb.jpg,e\u0301\n",
            r": the labels '\xe9' and 'e\u0301' look the same; merge or rename them.",
        ),
        (b"path,label\na.jpg,caf\xe9\n", r": the labels: 'caf\udce9' is not UTF-8; rename it."),
    ],
)
def test_a_fault_in_a_list_is_named_with_its_line(tmp_path: Path, text: str | bytes, fault: str):
    assert error_of(read_list, listed(tmp_path, text)).startswith(f"{tmp_path}/list.csv{fault}")


@pytest.mark.parametrize("name", ["absent.csv", "."])
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, name: str):
    text = error_of(read_list, tmp_path / name)
    assert text.startswith(f"{tmp_path / name} cannot be read: ")
    assert text.endswith("; use a CSV with a first line path,label or path,label,split.")


# As a dataset


def test_absolute_paths_are_read(tmp_path: Path):
    root, other = touch(tmp_path / "root", "a.jpg", "b.jpg"), touch(tmp_path / "other", "c.jpg")
    text = f"path,label,split\n{root}/a.jpg,ants,train\nb.jpg,bees,train\n../other/c.jpg,ants,test\n"
    files = files_from_list(root, read_list(listed(tmp_path, text)), CLASSES)
    assert files["train"].paths == [root / "a.jpg", root / "b.jpg"]
    assert [path.resolve() for path in files["test"].paths] == [other / "c.jpg"]


@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_split_file_names_the_images_of_a_dataset_by_absolute_or_relative_paths(tmp_path: Path, is_absolute: bool):
    root, prefix = touch(tmp_path, "a.jpg", "b.jpg", "c d.jpg"), f"{tmp_path}/" if is_absolute else ""
    listing = read_list(listed(tmp_path, f"path,label\n{prefix}a.jpg,ants\n{prefix}b.jpg,bees\n{prefix}c d.jpg,ants\n"))
    found = files_from_list(root, listing, CLASSES)["train"]
    text = f"path,label,split\n./a.jpg,ants,train\n{root}/b.jpg,bees,val\nc d.jpg,ants,train\n"
    rows = rows_by_dataset_name(read_list(listed(tmp_path, text)), root, found.names)
    parts = assign_splits({"train": found}, rows, CLASSES)
    assert {split: part.names for split, part in parts.items()} == {
        "train": (f"{prefix}a.jpg", f"{prefix}c d.jpg"),
        "val": (f"{prefix}b.jpg",),
    }
    twice = rows_by_dataset_name(read_list(listed(tmp_path, f"{text}{root}/a.jpg,ants,val\n")), root, found.names)
    with pytest.raises(DataError, match=r"line 5: .*a\.jpg is listed in a line before; delete the line\.$"):
        assign_splits({"train": found}, twice, CLASSES)


def test_files_of_a_list_have_labels_sizes_and_times_in_its_order(tmp_path: Path):
    touch(tmp_path, "b.jpg", "deep/a, 1.JPG", "no_ending", "v.jpg")
    os.utime(tmp_path / "b.jpg", ns=(0, 1_700_000_000_123_456_789))
    text = 'path,label,split\nb.jpg,bees,train\nv.jpg,ants,val\n"deep/a, 1.JPG", ants,train\nno_ending,bees,train\n'
    found = files_from_list(tmp_path, read_list(listed(tmp_path, text)), CLASSES)
    assert list(found) == ["train", "val"]
    train = found["train"]
    assert (train.root, train.names) == (tmp_path, ("b.jpg", "deep/a, 1.JPG", "no_ending"))
    assert train.labels.tolist() == [1, 0, 1]
    assert train.num_bytes.tolist() == [5, 13, 9]
    assert train.mtime_ns[0] == 1_700_000_000_123_456_789
    assert [path.read_bytes().decode() for path in train.paths] == list(train.names)
    assert (found["val"].names, found["val"].labels.tolist()) == (("v.jpg",), [0])


def test_a_list_without_splits_is_all_train_with_the_labels_of_the_given_classes(tmp_path: Path):
    rows = read_list(listed(tmp_path, "path,label\na.jpg,Bees\n"))
    (files,) = files_from_list(touch(tmp_path, "a.jpg"), rows, ("wasps", "bees")).values()
    assert (files.names, files.labels.tolist()) == (("a.jpg",), [1])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("absent.jpg,ants,train", "/absent.jpg cannot be read: No such file or directory; correct the line."),
        ("folder,ants,train", "/folder is not a regular file; delete the line."),
        ("link.jpg,ants,test", "link.jpg is another name of the file b.jpg in line 2; list it once."),
        ("a.jpg,wasps,train", "there is no class 'wasps'; the classes are ants, bees."),
    ],
)
def test_a_line_that_does_not_fit_the_files_or_classes_is_named(tmp_path: Path, line: str, fault: str):
    touch(tmp_path, "a.jpg", "b.jpg", "folder/x.jpg")
    (tmp_path / "link.jpg").symlink_to("b.jpg")
    rows = read_list(listed(tmp_path, f"path,label,split\nb.jpg,bees,train\n{line}\n"))
    found = error_of(files_from_list, tmp_path, rows, CLASSES).replace(str(tmp_path), "")
    assert found == f"/list.csv, line 3: {fault}"


@pytest.mark.parametrize("header", ["path,label,label", "path,split,label,split"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, header: str):
    cells = ",".join("train" if name == "split" else "ants" for name in header.split(","))
    name = header.split(",")[-1]
    found = error_of(read_list, listed(tmp_path, f"{header}\n{cells}\n")).replace(str(tmp_path), "")
    assert found == f"/list.csv, line 1: there are two columns {name}; rename one."


# As the splits of another dataset


FOUND = {"train": array([0, 1, 0], ["train/0", "train/1", "train/2"]), "val": array([1, 0], ["val/0", "val/1"])}


def assigned(folder: Path, *lines: str) -> dict:
    return assign_splits(FOUND, read_list(listed(folder, "\n".join(["path,label,split", *lines]))), CLASSES)


def test_images_go_where_the_list_says_in_the_order_of_the_dataset(tmp_path: Path):
    lines = ["val/1,ants,train", "train/1,bees,test", "train/2,ants,train", "val/0,bees,val", "train/0,ants,train"]
    parts = assigned(tmp_path, *lines)
    assert {split: part.names for split, part in parts.items()} == {
        "train": ("train/0", "train/2", "val/1"),
        "val": ("val/0",),
        "test": ("train/1",),
    }
    assert parts["train"].labels.tolist() == [0, 0, 0]
    assert parts["train"].images[:, 0, 0, 0].tolist() == [0, 2, 1]


def test_images_missing_from_the_list_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        parts = assigned(tmp_path, "train/0,ants,train", "val/0,bees,val")
    assert [part.names for part in parts.values()] == [("train/0",), ("val/0",)]
    assert caplog.messages == ["the list leaves out 3 of 5 images, e.g. train/1"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("train/9,ants,train", ", line 3: train/9 is not among the images of the dataset; delete the line."),
        (
            "train/1,ants,train",
            ", line 3: train/1 is listed as 'ants', in the dataset it is 'bees'; correct the label.",
        ),
        ("train/1,bess,train", ", line 3: there is no class 'bess'; the classes are ants, bees."),
    ],
)
def test_a_line_that_contradicts_the_dataset_is_named(tmp_path: Path, line: str, fault: str):
    assert error_of(assigned, tmp_path, "train/0,ants,train", line) == f"{tmp_path}/list.csv{fault}"


def test_a_split_file_without_splits_is_refused(tmp_path: Path):
    rows = read_list(listed(tmp_path, "path,label\ntrain/0,ants\n"))
    assert error_of(assign_splits, FOUND, rows, CLASSES).startswith(f"{tmp_path}/list.csv, line 2: a list that assigns")


# Written by imago


ODD_NAMES = (
    *("a.jpg", "a, b.jpg", 'say "hi".jpg', " blanks .jpg", "two\nlines.jpg", "ünï 😀.jpg", "caf\udce9.jpg", "#1.jpg"),
    *("carriage\rreturn.jpg", "both\r\n.jpg"),
)


@pytest.mark.parametrize("names", [ODD_NAMES[:-2], ODD_NAMES])
def test_a_written_list_comes_back_the_same(tmp_path: Path, names: tuple[str, ...]):
    expected = [(name, CLASSES[index % 2], "val" if index % 3 else "train") for index, name in enumerate(names)]
    write_csv(tmp_path / "split.csv", [COLUMNS, *expected])
    rows = read_list(tmp_path / "split.csv")
    assert [(row.name, row.label, row.split) for row in rows] == expected
    files = files_from_list(touch(tmp_path, *names), rows, CLASSES)
    again = assign_splits(files, rows, CLASSES)
    assert {split: part.names for split, part in again.items()} == {"train": names[::3], "val": again["val"].names}
    assert sorted((*again["train"].names, *again["val"].names)) == sorted(names)
