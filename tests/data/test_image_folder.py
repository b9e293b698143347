"""Which folders are splits and classes, what is listed in them, and which folders are refused in one line."""

import os
import re
import unicodedata
from pathlib import Path

import pytest

from imago.data.image_folder import (
    Skipped,
    find_splits,
    list_classes,
    list_pictures,
    list_training_classes,
    read_listing,
)
from imago.errors import DataError


def touch(root: Path, *names: str) -> Path:
    """Make empty files; nothing here opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def splits(root: Path) -> dict[str, str]:
    found = find_splits(root, Skipped())
    return {split: folder.relative_to(root).as_posix() for split, folder in found.items()}


def complaint(function, *arguments) -> str:
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
        (["train", "val"], {"train": "train", "val": "val"}),  # pictures without class folders, refused later
    ],
)
def test_splits_are_found_by_their_names(tmp_path: Path, folders: list[str], expected: dict[str, str]):
    touch(tmp_path, *(f"{folder}/x.jpg" for folder in folders))
    assert splits(tmp_path) == expected


def test_folders_beside_the_splits_are_told_of(tmp_path: Path):
    skipped = Skipped()
    find_splits(touch(tmp_path, "train/a/x.jpg", "unlabelled/x.jpg", "readme.txt"), skipped)
    assert (skipped.count, Path(skipped.example).name) == (2, "readme.txt")


def test_a_missing_root_names_the_setting_and_the_expected_tree(tmp_path: Path):
    text = complaint(splits, tmp_path / "nowhere")
    assert text.startswith(f"data.root={tmp_path}/nowhere does not exist; expected ROOT/train/CLASS/picture.jpg")
    assert "ROOT/CLASS/picture.jpg" in text


def test_a_file_as_root_is_refused(tmp_path: Path):
    assert "photos.zip is not a folder" in complaint(splits, touch(tmp_path, "photos.zip") / "photos.zip")


def test_two_folders_for_one_split_are_refused(tmp_path: Path):
    touch(tmp_path, "train/a/x.jpg", "val/a/x.jpg", "valid/a/x.jpg")
    assert "val/ and valid/ are both val; keep one" in complaint(splits, tmp_path)


def test_splits_without_train_are_refused(tmp_path: Path):
    text = complaint(splits, touch(tmp_path, "training/a/x.jpg", "val/a/x.jpg", "test/a/x.jpg"))
    assert "has test/ and val/ but no train/; expected ROOT/train" in text


def test_a_linked_train_folder_says_that_links_are_not_followed(tmp_path: Path):
    touch(tmp_path, "elsewhere/a/x.jpg", "root/val/a/x.jpg")
    (tmp_path / "root" / "train").symlink_to(tmp_path / "elsewhere")
    assert "no train/ (links to folders are not followed)" in complaint(splits, tmp_path / "root")


# list_classes


def test_classes_are_the_sorted_folders_that_are_not_hidden(tmp_path: Path):
    touch(tmp_path, "10/x.jpg", "2/x.jpg", "1/x.jpg", "__MACOSX/x.jpg", ".ipynb_checkpoints/x.jpg", "x.jpg")
    assert list_classes(tmp_path) == ("1", "10", "2")


@pytest.mark.parametrize(
    ("files", "fault"), [([], "is empty"), (["x.jpg"], "has no class folders"), ([".DS_Store"], "has no class folders")]
)
def test_a_folder_without_classes_shows_the_expected_tree(tmp_path: Path, files: list[str], fault: str):
    assert f"{fault}; expected ROOT/train/CLASS" in complaint(list_classes, touch(tmp_path, *files))


@pytest.mark.parametrize(
    ("one", "other"),
    [("cat", "Cat"), ("cat", "cat "), ("café", unicodedata.normalize("NFD", "café")), ("straße", "STRASSE")],
)
def test_names_of_classes_that_look_the_same_are_refused(tmp_path: Path, one: str, other: str):
    text = complaint(list_classes, touch(tmp_path, f"{one}/x.jpg", f"{other}/x.jpg"))
    assert "look the same; merge or rename them" in text
    assert ascii(one) in text
    assert ascii(other) in text


def test_a_class_name_that_is_not_utf_8_is_refused_in_printable_text(tmp_path: Path):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    text = complaint(list_classes, tmp_path)
    assert r"class folder 'caf\udce9' is not UTF-8; rename it" in text
    text.encode()


# list_training_classes


def test_a_folder_around_the_data_set_is_pointed_out(tmp_path: Path):
    touch(tmp_path, "dataset/cat/x.jpg", "dataset/dog/x.jpg", "__MACOSX/x.jpg")
    text = complaint(list_training_classes, tmp_path, tmp_path)
    assert "has only one class folder, 'dataset'; a classifier needs at least 2." in text
    assert text.endswith(f"Did you mean data.root={tmp_path}/dataset?")


def test_a_single_class_is_refused(tmp_path: Path):
    touch(tmp_path, "train/cat/x.jpg", "train/__dog/x.jpg")
    assert "train has only one class folder, 'cat'" in complaint(list_training_classes, tmp_path, tmp_path / "train")


# list_pictures


def test_pictures_are_listed_by_class_and_name_with_their_sizes(tmp_path: Path):
    touch(tmp_path, "b/2.PNG", "b/deep/er/1.jpeg", "a/é 1.jpg", "b/10.webp")
    (tmp_path / "b" / "2.PNG").write_bytes(b"12345")
    listing = list_pictures(tmp_path, ("a", "b"))
    assert listing.names == ("a/é 1.jpg", "b/10.webp", "b/2.PNG", "b/deep/er/1.jpeg")
    assert listing.labels.tolist() == [0, 1, 1, 1]
    assert listing.num_bytes.tolist() == [0, 0, 5, 0]
    assert listing.paths[2].read_bytes() == b"12345"


@pytest.mark.parametrize("name", ["notes.txt", "no_suffix", ".hidden.jpg", "._a.png", "__MACOSX/x.jpg", "photo.heic"])
def test_what_is_no_picture_is_counted_with_an_example(tmp_path: Path, name: str):
    skipped = Skipped()
    listing = list_pictures(touch(tmp_path, "a/x.jpg", f"a/{name}"), ("a",), skipped)
    assert listing.names == ("a/x.jpg",)
    assert (skipped.count, skipped.example) == (1, str(tmp_path / "a" / Path(name).parts[0]))


def test_pictures_beside_the_class_folders_are_counted(tmp_path: Path):
    skipped = Skipped()
    assert len(list_pictures(touch(tmp_path, "a/x.jpg", "stray.jpg"), ("a",), skipped)) == 1
    assert skipped.count == 1


def test_links_to_folders_are_not_followed_and_links_to_pictures_are(tmp_path: Path):
    touch(tmp_path, "root/a/x.jpg", "elsewhere/y.jpg")
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "y.jpg").symlink_to(tmp_path / "elsewhere" / "y.jpg")
    (tmp_path / "root" / "a" / "dangling.jpg").symlink_to(tmp_path / "nothing.jpg")
    skipped = Skipped()
    assert list_pictures(tmp_path / "root", ("a", "b"), skipped).names == ("a/x.jpg", "a/y.jpg")
    assert skipped.count == 3


@pytest.mark.timeout(20)  # opening the pipe would wait for ever
def test_only_regular_files_are_pictures(tmp_path: Path):
    touch(tmp_path, "a/x.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "folder.png").mkdir()
    assert list_pictures(tmp_path, ("a",)).names == ("a/x.jpg",)


def test_labels_go_by_the_name_of_the_class_not_by_its_place(tmp_path: Path):
    listing = list_pictures(touch(tmp_path, "dog/x.jpg"), ("ant", "cat", "dog"))
    assert listing.labels.tolist() == [2]


def test_labels_do_not_mind_how_an_accent_is_written(tmp_path: Path):
    touch(tmp_path, f"{unicodedata.normalize('NFD', 'café')}/x.jpg")
    assert list_pictures(tmp_path, ("bar", "café")).labels.tolist() == [1]


@pytest.mark.parametrize(("name", "hint"), [("bess", "is it 'bees'?"), ("wasps", "train has ants, bees.")])
def test_a_class_that_train_does_not_know_is_refused(tmp_path: Path, name: str, hint: str):
    text = complaint(list_pictures, touch(tmp_path, f"{name}/x.jpg"), ("ants", "bees"))
    assert text == f"{tmp_path} has a class {name!r} that the training pictures have not; {hint}"


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "a/x.jpg")
    monkeypatch.setattr(os, "scandir", lambda folder: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert re.search("cannot be read: Permission denied", complaint(list_classes, tmp_path))


# read_listing


def test_pictures_of_two_sizes_are_no_array(tmp_path: Path):
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "1.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "a" / "2.png")
    text = complaint(read_listing, list_pictures(tmp_path, ("a",)), "train")
    assert text == f"{tmp_path}/a/2.png is 5x4, other pictures of train are not."
