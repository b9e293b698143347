"""Files are replaced completely or not at all, and file names that are not valid UTF-8 survive every format."""

import csv
import os
import re
import threading
from pathlib import Path

import pytest

from imago.errors import DataError
from imago.files import (
    atomic_write,
    cell_text,
    decode_names,
    encode_names,
    make_writable,
    open_text,
    read_json,
    refuse_links,
    remove_partial_files,
    sha256_of,
    write_csv,
    write_json,
    write_text,
)

NOT_UTF_8 = os.fsdecode(b"caf\xe9.jpg")
NAMES = ("a.jpg", 'say "hi", twice.jpg', "two\nlines.jpg", "carriage\rreturn.jpg", "ünï 😀.jpg", NOT_UTF_8)


@pytest.mark.parametrize(("mode", "content"), [("w", "new\r\n"), ("wb", b"new\xff")])
def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path, mode: str, content: str | bytes):
    path = tmp_path / "x"
    path.write_text("old")
    with atomic_write(path, mode) as file:
        file.write(content)
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "x"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_partial_files_of_a_killed_process_are_removed_and_no_others(tmp_path: Path):
    for name in ("a.csv.12.34.part", "b.csv.12.34.part", "a.csv", "part"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path, "a.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"b.csv.12.34.part", "a.csv", "part"}
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "part"}
    remove_partial_files(tmp_path / "missing")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x"):
        remove_partial_files(tmp_path, "x")


def test_a_csv_file_is_read_back_with_every_name(tmp_path: Path):
    write_csv(tmp_path / "x.csv", [("path", "n"), *((name, number) for number, name in enumerate(NAMES))])
    with open_text(tmp_path / "x.csv") as file:
        rows = list(csv.reader(file, strict=True))
    assert rows == [["path", "n"], *([name, str(number)] for number, name in enumerate(NAMES))]


def test_no_cell_of_a_csv_is_a_formula_and_its_text_is_read_back(tmp_path: Path):
    cells = [
        "=cmd|' /C calc'!A0",
        "+1+2",
        "-x",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "'=1",
        "''-x",
        "-1.5",
        "+2e-3",
        "'a",
        "a=b",
        "-",
    ]
    write_csv(tmp_path / "x.csv", [("cell", "n"), *((cell, -1.5) for cell in cells)])
    with open_text(tmp_path / "x.csv") as file:
        written, numbers = zip(*csv.reader(file, strict=True), strict=True)
    assert numbers == ("n", *["-1.5"] * len(cells))
    is_number = [re.fullmatch(r"[-+][\d.e-]*\d", cell) is not None for cell in cells]
    assert not any(cell[0] in "=+-@\t\r" for cell, skip in zip(written[1:], is_number, strict=True) if not skip)
    assert [cell_text(cell) for cell in written[1:]] == cells


def test_a_plain_csv_file_has_no_quotes_and_the_bytes_of_the_names(tmp_path: Path):
    write_csv(tmp_path / "x.csv", [("path", "n"), (NOT_UTF_8, 1)])
    assert (tmp_path / "x.csv").read_bytes() == b"path,n\ncaf\xe9.jpg,1\n"


def test_text_is_read_with_or_without_a_byte_order_mark(tmp_path: Path):
    for content in (b"caf\xe9.jpg\r\n", b"\xef\xbb\xbfcaf\xe9.jpg\r\n"):
        (tmp_path / "x").write_bytes(content)
        with open_text(tmp_path / "x") as file:
            assert file.read() == f"{NOT_UTF_8}\r\n"


def test_text_and_json_are_read_back_with_every_name(tmp_path: Path):
    write_text(tmp_path / "x.txt", "\n".join(NAMES))
    assert (tmp_path / "x.txt").read_bytes() == os.fsencode("\n".join(NAMES))
    write_json(tmp_path / "x.json", {"names": NAMES})
    assert read_json(tmp_path / "x.json") == {"names": list(NAMES)}
    write_json(tmp_path / "x.json", {"name": "猫"})
    assert "猫" in (tmp_path / "x.json").read_text(encoding="utf-8")
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-4
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1, 2]", b"\xff", b"[" * 100_000])
def test_a_damaged_json_file_is_an_empty_dict(tmp_path: Path, content: bytes):
    (tmp_path / "x.json").write_bytes(content)
    assert read_json(tmp_path / "x.json") == {}
    assert read_json(tmp_path / "missing.json") == {}


@pytest.mark.parametrize("names", [NAMES, ("a",), ("",), ("a", "")])
def test_encoded_names_are_decoded_to_the_same(names: tuple[str, ...]):
    assert decode_names(encode_names(names)) == names


def test_a_directory_that_cannot_be_written_names_the_setting(tmp_path: Path):
    make_writable(tmp_path / "new" / "deep", "output=DIR")
    assert not list((tmp_path / "new" / "deep").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file cannot be written: .*; choose another directory with output=DIR\.$"):
        make_writable(tmp_path / "file", "output=DIR")


LINKS = ("config.yaml", "train.log", "metrics.csv", ".lock", "checkpoints", "figures", "tensorboard", "eval", "export")


@pytest.mark.parametrize(
    "name", [*LINKS, "eval/test", "eval/test/confusion.png", "export/export.log", "checkpoints/x/y"]
)
@pytest.mark.parametrize("is_dangling", [False, True])
def test_a_link_in_a_run_directory_is_refused(tmp_path: Path, name: str, is_dangling: bool):
    link, target = tmp_path / "run" / name, tmp_path / "target"
    link.parent.mkdir(parents=True)
    if not is_dangling:
        target.mkdir()
    link.symlink_to(target)
    with pytest.raises(DataError, match=f"/run/{name} is a link, which a run directory must not contain"):
        refuse_links(tmp_path / "run")


def test_a_link_to_a_run_directory_and_links_of_other_loggers_are_accepted(tmp_path: Path):
    (tmp_path / "run" / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "run" / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "latest").symlink_to("run")
    refuse_links(tmp_path / "latest")


def test_writing_replaces_a_link_and_leaves_its_target(tmp_path: Path):
    target, link = tmp_path / "precious", tmp_path / "link.csv"
    target.write_text("precious")
    for make in (link, tmp_path / f"link.csv.{os.getpid()}.{threading.get_ident()}.part"):
        make.symlink_to(target)
    write_csv(link, [("a",)])
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("precious", "a\n", False)
