"""The images that `input` means: one file with any name, a folder, a pattern, or a list."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from imago.errors import ConfigError
from imago.inference.find_images import find_images

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


def test_a_folder_is_searched_with_its_subfolders_but_without_hidden_ones(tmp_path: Path):
    for name in ("b.JPG", "a/c.png", "a/[d]/e.webp", ".hidden.png", ".cache/f.png", "a/.g/h.png", "readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert names(find_images(str(tmp_path)), tmp_path) == ["a/[d]/e.webp", "a/c.png", "b.JPG"]


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
    ("text", "reason"), [("a" * 5000, "matches nothing"), ("x\n[y].png", r"x\\n\[y\].png matches")]
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
