"""The images that `input` means: one file with any name, a folder, a pattern, or a list."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from imago.errors import ConfigError, DataError
from imago.files import write_csv
from imago.images import read_image
from imago.inference.find_images import find_images, left_out_files

NASTY = (
    *("IMG (1).jpg", "a,b=c.png", "[x] {y}.png", "~tilde.png", "été ünï.webp", 'quote\'s "q".png', "100%.PNG"),
    *("a#b $HOME.png", "ends\\.gif", "*.bmp", "line\nbreak.tiff", " "),
)


def names(found: Sequence[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in found]


@pytest.mark.parametrize("name", NASTY)
def test_an_existing_file_is_found_whatever_its_name(tmp_path: Path, name: str):
    for file in (name, "x.bmp"):
        (tmp_path / file).touch()
    assert find_images(str(tmp_path / name)) == [tmp_path / name]


@pytest.mark.parametrize("header", ["path,label", "label,Path", "image,true,predicted", "filename", "split,path,label"])
def test_a_csv_list_of_the_project_is_read_relative_to_its_directory(tmp_path: Path, header: str):
    columns = [name.casefold() in ("path", "image", "filename") for name in header.split(",")]
    files = ["a/b.png", "/abs/c.png", "=d.png"]
    rows = [[file if is_path else "x" for is_path in columns] for file in files]
    write_csv(tmp_path / "list.csv", [header.split(","), *rows])
    assert find_images(str(tmp_path / "list.csv")) == [tmp_path / file for file in files]


@pytest.mark.parametrize("content", ["", "path,label\n", "label,split\na,b\n", "\0", "a"])
def test_a_csv_without_paths_is_refused_by_name(tmp_path: Path, content: str):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises((ConfigError, DataError), match=r"x\.csv(, line 1)? (has no|is not CSV|is empty)"):
        find_images(str(tmp_path / "x.csv"))


@pytest.mark.parametrize(("encoding", "separator"), [("utf-16", "\t"), ("utf-8", ";"), ("utf-8-sig", ",")])
def test_a_list_of_excel_is_read_as_data_list_file_is(tmp_path: Path, encoding: str, separator: str):
    text = "\r\n".join(separator.join(cells) for cells in (["label", "file_name"], ["x", "été.png"], ["y", "b.png"]))
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    assert find_images(str(tmp_path / "list.csv")) == [tmp_path / "été.png", tmp_path / "b.png"]


def test_other_formats_and_hidden_files_are_left_out_with_their_reason(tmp_path: Path):
    for name in ("a.png", "b.tga", ".c.png", "d.txt"):
        (tmp_path / name).touch()
    left_out = left_out_files(str(tmp_path), find_images(str(tmp_path)))
    reasons = ["hidden", "a format that is not read; convert it to PNG or JPEG", "not an image"]
    assert left_out == list(zip([tmp_path / ".c.png", tmp_path / "b.tga", tmp_path / "d.txt"], reasons, strict=True))


def test_a_folder_is_searched_with_its_subfolders_but_without_hidden_ones(tmp_path: Path):
    for name in ("b.JPG", "a/c.png", "a/[d]/e.webp", ".hidden.png", ".cache/f.png", "a/.g/h.png", "readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert names(find_images(str(tmp_path)), tmp_path) == ["a/[d]/e.webp", "a/c.png", "b.JPG"]


def test_linked_folders_are_searched_once_and_loops_of_links_end(tmp_path: Path):
    for name in ("in/a.png", "in/deep/b.png", "elsewhere/c.png", "elsewhere/more/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in (("in/linked", "elsewhere"), ("in/again", "elsewhere"), ("in/0", "in/deep"), ("in/x", "in")):
        (tmp_path / name).symlink_to(tmp_path / target)
    (tmp_path / "elsewhere" / "more" / "back").symlink_to(tmp_path / "in")
    found = names(find_images(str(tmp_path / "in")), tmp_path / "in")
    assert found == ["a.png", "again/c.png", "again/more/d.png", "deep/b.png"]


@pytest.mark.parametrize("pattern", ["", "/*"])
def test_the_content_of_a_file_decides_and_the_others_are_named(tmp_path: Path, pattern: str):
    image = Image.new("RGB", (4, 4))
    for name, kind in (("b.jfif", "JPEG"), ("no suffix", "PNG"), ("c.avif", "AVIF"), ("d.data", "TIFF"), ("e", "WEBP")):
        image.save(tmp_path / name, kind)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0")
    (tmp_path / "empty").touch()
    (tmp_path / "notes.txt").write_text("BMW")
    os.mkfifo(tmp_path / "pipe.png")
    text = f"{tmp_path}{pattern}"
    images = find_images(text)
    assert names(images, tmp_path) == ["IMG_1.HEIC", "b.jfif", "c.avif", "d.data", "e", "no suffix"]
    others = {"empty": "not an image", "film.mp4": "not an image", "notes.txt": "not an image"}
    left_out = {path.name: reason for path, reason in left_out_files(text, images)}
    assert left_out == others | {"pipe.png": "not a regular file"}
    for path in images[1:]:
        assert read_image(path).shape == (4, 4, 3)
    with pytest.raises(
        DataError, match="IMG_1.HEIC is a HEIC image, .*: pip install pillow-heif, or convert it to JPEG"
    ):
        read_image(images[0])


def test_a_folder_with_brackets_is_no_pattern_and_a_pattern_names_what_made_it_one(tmp_path: Path):
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "x.png").touch()
    assert names(find_images(f"{tmp_path}/a[1]"), tmp_path) == ["a[1]/x.png"]
    with pytest.raises(
        ConfigError, match=r"b\[1\]\* matches nothing; .*; the characters \* and \[ make it a pattern\.$"
    ):
        find_images(f"{tmp_path}/b[1]*")


def test_a_pipe_named_like_an_image_is_left_out_and_a_broken_link_is_reported_when_it_is_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("gone.png")
    assert names(find_images(str(tmp_path)), tmp_path) == ["link.png"]
    with pytest.raises(ConfigError, match="pipe.png has no image"):
        find_images(str(tmp_path / "pipe.png"))


def test_a_pattern_finds_images_and_folder_contents_each_once(tmp_path: Path):
    for name in ("x1.png", "x2.txt", "x3/y.png", "x3/z/y.png", "other.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(find_images(f"{tmp_path}/x*"), tmp_path) == ["x1.png", "x3/y.png", "x3/z/y.png"]
    assert names(find_images(f"{tmp_path}/**"), tmp_path) == ["other.png", "x1.png", "x3/y.png", "x3/z/y.png"]
    assert names(find_images(f"{tmp_path}/x[12].*"), tmp_path) == ["x1.png"]


@pytest.mark.parametrize(
    ("text", "reason"), [("a" * 5000, "matches nothing"), ("x\n[y].png", r"x\\n\[y\].png matches nothing")]
)
def test_a_text_that_matches_nothing_is_one_line(text: str, reason: str):
    with pytest.raises(ConfigError, match=reason) as caught:
        find_images(text)
    assert "\n" not in str(caught.value)


def test_a_list_keeps_its_order_and_its_missing_files(tmp_path: Path):
    names = ["b.png", "a, b.png", " lead.png", os.fsdecode(b"latin\xe9.png")]
    text = "\ufeff" + "\r\n".join(["b.png", "", "a, b.png", " lead.png"]) + "\n"
    file = tmp_path / "List.TXT"
    file.write_bytes(text.encode() + b"latin\xe9.png")
    assert find_images(str(file)) == [Path(name) for name in names]


def test_an_empty_list_is_refused(tmp_path: Path):
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="list.txt is an empty list; write the path of an image on each line"):
        find_images(str(tmp_path / "list.txt"))
