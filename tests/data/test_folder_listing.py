"""Splits, classes and images are found by folder; wrong folders are refused in one line, other entries are recorded.

More wrong folders are in tests/faults/test_folders.py.
"""

import inspect
import os
import re
import sys
import unicodedata
from pathlib import Path

import pytest

from imago.data.dataset import LabeledFiles
from imago.data.folder_listing import (
    Ignored,
    find_splits,
    list_classes,
    list_images,
    list_training_classes,
)
from imago.errors import DataError


def touch(root: Path, *names: str) -> Path:
    """Create empty files; no test opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def splits(root: Path) -> dict[str, str]:
    found = find_splits(root, Ignored())
    return {split: folder.relative_to(root).as_posix() for split, folder in found.items()}


def error_of(function, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# find_splits


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train/a", "val/a", "test/a"], {"train": "train", "val": "val", "test": "test"}),
        (["Train/a", "Validation/a", "TEST/a"], {"train": "Train", "val": "Validation", "test": "TEST"}),
        (["train/a", "valid/a"], {"train": "train", "val": "valid"}),
        (["train/a", "test/a"], {"train": "train", "test": "test"}),
        (["train/a"], {"train": "train"}),
        (["cat", "dog"], {"train": "."}),
        (["train", "plane", "car"], {"train": "."}),  # a class of vehicles
        (["train", "val"], {"train": "train", "val": "val"}),  # images without class folders are refused later
    ],
)
def test_splits_are_found_by_their_names(tmp_path: Path, folders: list[str], expected: dict[str, str]):
    touch(tmp_path, *(f"{folder}/x.jpg" for folder in folders))
    assert splits(tmp_path) == expected


def test_entries_outside_the_splits_are_recorded(tmp_path: Path):
    ignored = Ignored()
    find_splits(touch(tmp_path, "train/a/x.jpg", "unlabeled/x.jpg", "readme.txt", ".git/x.jpg"), ignored)
    outside = "outside the split folders"
    assert ignored.entries == [(".git", "hidden name"), ("readme.txt", outside), ("unlabeled", outside)]


def test_a_file_as_root_is_refused(tmp_path: Path):
    assert "photos.zip is not a folder" in error_of(splits, touch(tmp_path, "photos.zip") / "photos.zip")


def test_two_folders_for_one_split_are_refused(tmp_path: Path):
    touch(tmp_path, "train/a/x.jpg", "val/a/x.jpg", "valid/a/x.jpg")
    assert "val/ and valid/ are both val; keep one" in error_of(splits, tmp_path)


def test_splits_without_train_are_refused(tmp_path: Path):
    text = error_of(splits, touch(tmp_path, "training_set/a/x.jpg", "val/a/x.jpg", "test/a/x.jpg"))
    assert "has test/ and val/ but no train/; expected ROOT/train" in text


def test_a_linked_train_folder_says_that_links_are_not_followed(tmp_path: Path):
    touch(tmp_path, "elsewhere/a/x.jpg", "root/val/a/x.jpg")
    (tmp_path / "root" / "train").symlink_to(tmp_path / "elsewhere")
    assert "no train/ (links to folders are not followed)" in error_of(splits, tmp_path / "root")


# list_classes


def test_classes_are_the_sorted_folders_that_are_not_hidden(tmp_path: Path):
    touch(tmp_path, "10/x.jpg", "2/x.jpg", "1/x.jpg", "__MACOSX/x.jpg", ".ipynb_checkpoints/x.jpg", "x.jpg")
    assert list_classes(tmp_path) == ("1", "10", "2")


def test_a_class_name_that_is_not_utf_8_is_refused_in_printable_text(tmp_path: Path):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    text = error_of(list_classes, tmp_path)
    assert r"class folders: 'caf\udce9' is not UTF-8; rename it" in text
    text.encode()


# list_training_classes


def test_a_single_class_is_refused(tmp_path: Path):
    touch(tmp_path, "train/cat/x.jpg", "train/__dog/x.jpg")
    assert "train has only one class folder, 'cat'" in error_of(list_training_classes, tmp_path, tmp_path / "train")


# list_images


def listing_of(root: Path, *class_names: str, folder: str = "") -> tuple[LabeledFiles, list[tuple[str, str]]]:
    ignored = Ignored()
    return list_images(root, root / folder, class_names, ignored), ignored.entries


def test_images_are_listed_by_class_and_name_with_size_and_time(tmp_path: Path):
    touch(tmp_path, "b/2.PNG", "b/deep/er/1.jpeg", "a/é 1.jpg", "b/10.webp")
    (tmp_path / "b" / "2.PNG").write_bytes(b"12345")
    os.utime(tmp_path / "b" / "2.PNG", ns=(0, 1_700_000_000_123_456_789))
    listing, ignored = listing_of(tmp_path, "a", "b")
    assert listing.names == ("a/é 1.jpg", "b/10.webp", "b/2.PNG", "b/deep/er/1.jpeg")
    assert listing.labels.tolist() == [0, 1, 1, 1]
    assert listing.num_bytes.tolist() == [0, 0, 5, 0]
    assert listing.mtime_ns[2] == 1_700_000_000_123_456_789
    assert listing.paths[2].read_bytes() == b"12345"
    assert ignored == []


def test_names_start_from_the_root_of_the_data_set(tmp_path: Path):
    touch(tmp_path, "val/a/x.jpg", "val/a/notes.txt", "val/.hidden", "val/b.jpg")
    listing, ignored = listing_of(tmp_path, "a", folder="val")
    assert (listing.root, listing.names) == (tmp_path, ("val/a/x.jpg",))
    expected = {
        "val/.hidden": "hidden name",
        "val/a/notes.txt": "ending .txt",
        "val/b.jpg": "outside the class folders",
    }
    assert dict(ignored) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.txt", "ending .txt"),
        ("photo.HEIC", "ending .heic"),
        ("photo.avif", "ending .avif"),
        ("photo.jp2", "ending .jp2"),
        ("photo.jpg.part", "ending .part"),
        ("photo", "no ending"),
        (".hidden.jpg", "hidden name"),
        ("._a.png", "hidden name"),
        ("__MACOSX", "hidden name"),
    ],
)
def test_what_is_no_image_is_recorded_with_the_reason(tmp_path: Path, name: str, reason: str):
    listing, ignored = listing_of(touch(tmp_path, "a/x.jpg", f"a/{name}"), "a")
    assert listing.names == ("a/x.jpg",)
    assert ignored == [(f"a/{name}", reason)]


def test_a_hidden_folder_is_recorded_as_one_entry(tmp_path: Path):
    touch(tmp_path, "a/x.jpg", "a/.ipynb_checkpoints/1.jpg", "a/.ipynb_checkpoints/2.jpg", "__MACOSX/a/._x.jpg")
    listing, ignored = listing_of(tmp_path, "a")
    assert listing.names == ("a/x.jpg",)
    assert ignored == [("__MACOSX", "hidden name"), ("a/.ipynb_checkpoints", "hidden name")]


def test_links_to_folders_are_not_followed(tmp_path: Path):
    touch(tmp_path, "root/a/x.jpg", "elsewhere/y.jpg")
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "a" / "loop.jpg").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    listing, ignored = listing_of(tmp_path / "root", "a", "b")
    assert listing.names == ("a/x.jpg",)
    assert ignored == [(name, "link to a folder (not followed)") for name in ("a/loop", "a/loop.jpg", "b")]


@pytest.mark.parametrize("target", ["nothing.jpg", "lost.jpg", "x.jpg/below"])  # lost.jpg is a link to itself
def test_dangling_links_are_recorded(tmp_path: Path, target: str):
    touch(tmp_path, "a/x.jpg", "b/x.jpg")
    for name in ("a/lost.jpg", "a/lost", "lost"):
        (tmp_path / name).symlink_to(target)
    listing, ignored = listing_of(tmp_path, "a", "b")
    assert listing.names == ("a/x.jpg", "b/x.jpg")
    assert ignored[:2] == [("a/lost", "dangling link"), ("a/lost.jpg", "dangling link")]
    assert find_splits(tmp_path, Ignored()) == {"train": tmp_path}
    assert list_training_classes(tmp_path, tmp_path) == ("a", "b")


def test_a_link_to_an_image_is_listed_and_recorded_if_it_leaves_the_data_set(tmp_path: Path):
    touch(tmp_path, "root/a/x.jpg", "elsewhere/y.jpg", "root/notes/z.jpg")
    (tmp_path / "root" / "a" / "y.jpg").symlink_to(tmp_path / "elsewhere" / "y.jpg")
    (tmp_path / "root" / "a" / "z.jpg").symlink_to("../notes/z.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    ignored = Ignored()
    listing = list_images(tmp_path / "link", tmp_path / "link", ("a", "notes"), ignored)
    assert listing.names == ("a/x.jpg", "a/y.jpg", "a/z.jpg")
    assert ignored.outside == ["a/y.jpg"]


def test_a_file_with_several_names_is_one_image(tmp_path: Path):
    touch(tmp_path, "b/x.jpg")
    (tmp_path / "a").mkdir()
    os.link(tmp_path / "b" / "x.jpg", tmp_path / "a" / "hard.jpg")
    (tmp_path / "b" / "soft.jpg").symlink_to("x.jpg")
    listing, ignored = listing_of(tmp_path, "a", "b")
    assert listing.names == ("a/hard.jpg",)
    assert ignored == [(name, "same file as a/hard.jpg") for name in ("b/soft.jpg", "b/x.jpg")]


@pytest.mark.timeout(20)  # opening the pipe would block forever
def test_only_regular_files_are_images(tmp_path: Path):
    touch(tmp_path, "a/x.jpg", "a/folder.png/y.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    listing, ignored = listing_of(tmp_path, "a")
    assert listing.names == ("a/folder.png/y.jpg", "a/x.jpg")
    assert ignored == [("a/pipe.png", "not a regular file")]


def test_folders_may_be_nested_deeper_than_the_recursion_limit(tmp_path: Path):
    touch(tmp_path, "a/x.jpg", "a/" + 150 * "d/" + "y.jpg")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        listing, _ = listing_of(tmp_path, "a")
    finally:
        sys.setrecursionlimit(limit)
    assert listing.names == ("a/" + 150 * "d/" + "y.jpg", "a/x.jpg")


def test_labels_follow_the_class_name_and_not_its_position(tmp_path: Path):
    assert listing_of(touch(tmp_path, "dog/x.jpg"), "ant", "cat", "dog")[0].labels.tolist() == [2]


def test_labels_ignore_how_an_accent_is_encoded(tmp_path: Path):
    touch(tmp_path, f"{unicodedata.normalize('NFD', 'café')}/x.jpg")
    assert listing_of(tmp_path, "bar", "café")[0].labels.tolist() == [1]


@pytest.mark.parametrize(("name", "hint"), [("bess", "is it 'bees'?"), ("wasps", "the classes are ants, bees.")])
def test_a_class_without_training_images_is_refused(tmp_path: Path, name: str, hint: str):
    text = error_of(listing_of, touch(tmp_path, f"{name}/x.jpg"), "ants", "bees")
    assert text == f"{tmp_path} has a class {name!r} that the training images do not have; {hint}"


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "a/x.jpg")
    monkeypatch.setattr(os, "scandir", lambda folder: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert re.search("cannot be read: Permission denied", error_of(list_classes, tmp_path))


# Ignored


def test_the_summary_of_nothing_is_empty():
    assert Ignored().summary() == ""


def test_the_summary_counts_by_reason_with_an_example_each():
    ignored = Ignored()
    for name in ("train/a/notes.txt", "train/a/more.txt"):
        ignored.add(name, "ending .txt")
    for name in ("val/c\n.jpg", "val/d.jpg"):
        ignored.add(name, "same file as val/b.jpg")
    ignored.add("train/.DS_Store", "hidden name")
    ignored.outside.append("train/a/y.jpg")
    assert ignored.summary() == (
        "ignored 5 entries: 2 x ending .txt (e.g. train/a/notes.txt), 2 x another name of a listed file "
        r"(e.g. val/c\n.jpg), 1 x hidden name (e.g. train/.DS_Store); "
        "followed 1 x link to an image outside of the data set (e.g. train/a/y.jpg)"
    )


def test_a_summary_of_very_many_reasons_stays_short():
    ignored = Ignored()
    for number in range(1000):
        ignored.add(f"train/a/x.{number}", f"ending .{number}")
    text = ignored.summary()
    assert "ignored 1,000 entries: 1 x ending .0 (e.g. train/a/x.0), " in text
    assert text.endswith("1 x ending .7 (e.g. train/a/x.7), 992 for other reasons")
