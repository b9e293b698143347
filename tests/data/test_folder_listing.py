"""Splits, classes and images are found by folder; wrong folders are refused in one line, other entries are recorded.

More wrong folders, and links, are in tests/faults/test_folders.py.
"""

import os
import re
import unicodedata
from pathlib import Path

import pytest

from imago.data.folder_listing import find_splits, list_image_folder
from imago.errors import DataError


def touch(root: Path, *names: str) -> Path:
    """Create empty files; no test opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def error_of(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        list_image_folder(root)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train/a", "val/a", "test/a"], {"train": "train", "val": "val", "test": "test"}),
        (["Train/a", "Validation/a", "TEST/a"], {"train": "Train", "val": "Validation", "test": "TEST"}),
        (["train/a", "valid/a"], {"train": "train", "val": "valid"}),
        (["train/a"], {"train": "train"}),
        (["cat", "dog"], {"train": ""}),
        (["train", "plane", "car"], {"train": ""}),  # a class of vehicles
        (["train", "val"], {"train": "train", "val": "val"}),  # images without class folders are refused later
    ],
)
def test_splits_are_found_by_their_names(tmp_path: Path, folders: list[str], expected: dict[str, str]):
    assert find_splits(touch(tmp_path, *(f"{folder}/x.jpg" for folder in folders))) == expected


def test_a_file_as_root_is_refused(tmp_path: Path):
    assert "photos.zip is not a folder" in error_of(touch(tmp_path, "photos.zip") / "photos.zip")


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["train/a/x.jpg", "val/a/x.jpg", "valid/a/x.jpg"], "val/ and valid/ are both val; keep one"),
        (["trainset/a/x.jpg", "val/a/x.jpg", "test/a/x.jpg"], "has test/ and val/ but no train/; expected ROOT/train"),
    ],
)
def test_split_folders_that_contradict_each_other_are_refused(tmp_path: Path, names: list[str], fault: str):
    assert fault in error_of(touch(tmp_path, *names))


def test_a_class_name_that_is_not_utf_8_is_refused_in_printable_text(tmp_path: Path):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    assert r"class folders: 'caf\udce9' is not UTF-8; rename it" in error_of(tmp_path)


def test_images_are_listed_by_class_and_name_with_size_and_time(tmp_path: Path):
    touch(tmp_path, "b/2.PNG", "b/deep/er/1.jpeg", "a/é 1.jpg", "b/10.webp", "b/folder.png/x.gif")
    (tmp_path / "b" / "2.PNG").write_bytes(b"12345")
    os.utime(tmp_path / "b" / "2.PNG", ns=(0, 1_700_000_000_123_456_789))
    class_names, files, ignored = list_image_folder(tmp_path)
    train = files["train"]
    assert (class_names, list(files), train.root, ignored) == (("a", "b"), ["train"], tmp_path, [])
    assert train.names == ("a/é 1.jpg", "b/10.webp", "b/2.PNG", "b/deep/er/1.jpeg", "b/folder.png/x.gif")
    assert train.labels.tolist() == [0, 1, 1, 1, 1]
    assert train.num_bytes.tolist() == [0, 0, 5, 0, 0]
    assert train.mtime_ns[2] == 1_700_000_000_123_456_789


def test_what_is_not_an_image_is_recorded_with_the_reason(tmp_path: Path):
    reasons = {
        ".git": "hidden name",
        "readme.txt": "outside the split folders",
        "train/.hidden": "hidden name",
        "train/a/._x.jpg": "hidden name",
        "train/a/.ipynb_checkpoints": "hidden name",
        "train/a/photo": "no file extension",
        "train/a/photo.HEIC": "file extension .heic, which needs pip install pillow-heif, or a conversion to JPEG",
        "train/a/photo.jpg.part": "file extension .part",
        "train/y.jpg": "outside the class folders",
        "unlabeled": "outside the split folders",
    }
    folders = (".git", "train/a/.ipynb_checkpoints", "unlabeled")
    touch(tmp_path, "train/a/x.jpg", "train/b/x.jpg", *(name for name in reasons if name not in folders))
    touch(tmp_path, *(f"{folder}/{number}.jpg" for folder in folders for number in range(2)))
    _, files, ignored = list_image_folder(tmp_path)
    assert files["train"].names == ("train/a/x.jpg", "train/b/x.jpg")
    assert ignored == list(reasons.items())


def test_labels_follow_the_class_name_and_not_its_position_or_encoding(tmp_path: Path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    touch(tmp_path, "train/bar/x.jpg", f"train/{composed}/x.jpg", f"val/{decomposed}/x.jpg")
    class_names, files, _ = list_image_folder(tmp_path)
    assert class_names[files["val"].labels[0]] == composed


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "scandir", lambda folder: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert error_of(tmp_path) == f"{tmp_path} cannot be read: Permission denied; check its permissions."


def test_ignored_entries_are_logged_by_reason_with_an_example_each(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    touch(tmp_path, "a/x.jpg", "b/x.jpg", "b/1.txt", "b/new\nline.txt", "b/.DS_Store", *(f"a/x.{n}" for n in range(12)))
    for number in range(3):
        os.link(tmp_path / "a" / "x.jpg", tmp_path / "b" / f"again{number}.jpg")
    with caplog.at_level("INFO"):
        list_image_folder(tmp_path)
    (text,) = caplog.messages
    assert text.startswith(
        "ignored 18 entries: 3 x same file (e.g. b/again0.jpg), 2 x file extension .txt (e.g. b/1.txt), 1 x"
    )
    assert text.endswith(" and 5 more")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ("ant/IMG_1.HEIC", "ant/IMG_2.HEIC", "bee/IMG_3.heif"),
            "2 x file extension .heic, which needs pip install pil",
        ),
        (("ant/notes.txt", "bee/notes.txt"), "2 x file extension .txt (e.g. ant/notes.txt)"),
    ],
)
def test_a_folder_whose_files_are_all_left_out_is_refused_with_the_reason(tmp_path: Path, monkeypatch, names, reason):
    monkeypatch.setattr("imago.data.folder_listing.SUFFIXES", {".jpg"})  # as without the package for HEIC
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} has no images: {reason}")):
        list_image_folder(touch(tmp_path, *names))


def test_images_that_pillow_reads_are_listed_by_all_their_suffixes(tmp_path: Path):
    names = tuple(f"{name}/a{suffix}" for name in ("ant", "bee") for suffix in (".AVIF", ".jfif", ".jpg", ".mpo"))
    assert list_image_folder(touch(tmp_path, *names))[1]["train"].names == names
