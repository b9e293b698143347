"""`check.py` reports every problem of a dataset at once, and exits with 1 if one needs a decision."""

import csv
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drawn_images import photo
from PIL import Image

from imago.data.dataset import LabeledArray, Splits
from imago.dataset_check.check import examine_dataset
from imago.dataset_check.pages import draw_sheets
from imago.images import Preprocess

RECORD = Preprocess(size=16, resize=16, crop="center", mean=(0.5,) * 3, std=(0.5,) * 3)


def write_set(root: Path, num_train: int = 12) -> Path:
    """Write two classes in three splits, no two images alike."""
    for label, name in enumerate(("bee", "猫")):
        for split, count in (("train", num_train), ("val", 3), ("test", 3)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 1000 * label + 100 * len(split) + number
                Image.fromarray(photo(seed, 48)).save(folder / f"{number}.png")
    return root


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def check(command: Callable, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run `python src/check.py` on a folder; results land in tmp_path/logs/check/one."""

    def run(root: Path, *arguments: str, returncode: int = 0) -> subprocess.CompletedProcess:
        paths = (f"paths.log_dir={tmp_path / 'logs'}", f"paths.data_dir={tmp_path / 'data'}")
        done = command("src/check.py", "data=image_folder", f"data.root={root}", "run_name=one", *paths, *arguments)
        assert done.returncode == returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


class MemorySet:
    """The attributes of a data module in memory that a check uses."""

    class_names = ("ant", "bee")

    def __init__(self) -> None:
        images = np.stack([photo(seed, 16).transpose(2, 0, 1) for seed in range(12)])
        images[11] = images[0]
        labels = np.array([0, 1] * 6)
        parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
        arrays = (LabeledArray(images[part], labels[part], tuple(map(str, range(12)[part]))) for part in parts.values())
        self.splits = Splits(self.class_names, *arrays)


def test_images_in_memory_are_gathered_split_by_split(tmp_path: Path):
    checked = examine_dataset(MemorySet(), tmp_path)
    assert checked.names == tuple(map(str, range(12)))
    assert checked.splits.tolist() == [0] * 6 + [1] * 3 + [2] * 3
    assert checked.counts.tolist() == [[3, 2, 1], [3, 1, 2]]
    assert checked.leaked("test", "train").tolist() == [11]
    assert not list(tmp_path.iterdir())


def test_a_sheet_shows_the_images_of_one_class_of_all_splits(tmp_path: Path):
    data = MemorySet()
    pages = dict(draw_sheets(examine_dataset(data, tmp_path), [part for _, part in data.splits.items()], RECORD))
    assert list(pages) == ["0000_ant.png", "0001_bee.png"]
    cells = [pages["0001_bee.png"][32 : 32 + 96, 2 + 98 * column : 98 + 98 * column] for column in range(6)]
    for seed, cell in zip((1, 3, 5, 7, 9, 0), cells, strict=True):
        assert np.array_equal(cell, photo(seed, 16).repeat(6, axis=0).repeat(6, axis=1))


@pytest.mark.slow
def test_a_sound_dataset_is_reported_and_drawn(check: Callable, tmp_path: Path):
    done = check(write_set(tmp_path / "my set (1)", num_train=40))
    folder = tmp_path / "logs" / "check" / "one"
    assert {path.name for path in folder.iterdir()} == {
        *("check.json", "bad_images.csv", "ignored.csv", "duplicates.csv", "contact_sheets")
    }
    content = json.loads((folder / "check.json").read_text())
    assert content["classes"]["猫"] == {"train": 40, "val": 3, "test": 3}
    assert content["formats"] == {"PNG": 92}
    assert content["sizes"]["median"] == [48, 48]
    assert {path.name for path in (folder / "contact_sheets").iterdir()} == {"0000_bee.png", "0001_猫.png"}
    assert rows(folder / "bad_images.csv") == rows(folder / "duplicates.csv") == []
    [command] = [line for line in done.stdout.splitlines() if line.startswith("  python src/train.py ")]
    settings = [f'data.root="{tmp_path / "my set (1)"}"', f'paths.data_dir="{tmp_path / "data"}"']
    assert shlex.split(command)[2:] == ["data=image_folder", *settings]
    assert not (tmp_path / "logs" / "latest").exists()
    again = check(tmp_path / "my set (1)", returncode=2)
    assert "run_name=one: " in again.stderr
    assert "already holds a check; choose another name" in again.stderr
    assert json.loads((folder / "check.json").read_text()) == content


@pytest.mark.slow
def test_all_problems_are_reported_at_once_with_exit_code_1(check: Callable, tmp_path: Path):
    root = write_set(tmp_path / "set")
    train = root / "train"
    (train / "bee" / "3.png").write_bytes(b"")
    whole = (train / "猫" / "4.png").read_bytes()
    (train / "猫" / "4.png").write_bytes(whole[: len(whole) // 2])
    shutil.copy(train / "bee" / "0.png", root / "test" / "bee" / "copy.png")
    Image.open(train / "bee" / "1.png").resize((80, 80)).save(root / "val" / "bee" / "scaled.jpg")
    shutil.copy(train / "bee" / "2.png", train / "猫" / "copy.png")
    (train / "bee" / "notes.txt").write_text("no image")
    done = check(root, returncode=1)
    folder = tmp_path / "logs" / "check" / "one"
    bad = rows(folder / "bad_images.csv")
    assert [(row["path"], row["split"], row["class"]) for row in bad] == [
        ("train/bee/3.png", "train", "bee"),
        ("train/猫/4.png", "train", "猫"),
    ]
    assert bad[0]["reason"].startswith("is empty")
    assert {(row["path_a"], row["path_b"], row["kind"]) for row in rows(folder / "duplicates.csv")} == {
        ("train/bee/0.png", "test/bee/copy.png", "same bytes"),
        ("train/bee/1.png", "val/bee/scaled.jpg", "near"),
        ("train/bee/2.png", "train/猫/copy.png", "same bytes"),
    }
    assert [row["path"] for row in rows(folder / "ignored.csv")] == ["train/bee/notes.txt"]
    marked = [line[5:] for line in done.stdout.splitlines() if line.startswith("! ")]
    assert [text.split(",")[0] for text in marked] == [
        "2 of 39 images cannot be read: train/bee/3.png",
        "1 of 7 test images has an exact or near duplicate in train",
        "1 of 7 val images has an exact or near duplicate in train",
        "1 x exact or near duplicates in different classes",
    ]
    assert done.stderr.strip().endswith("4 findings (marked !) need a decision before training")
    kept = {row["path"] for row in rows(folder / "split_without_leaks.csv")}
    assert {"test/bee/copy.png", "val/bee/scaled.jpg"} <= kept
    assert not kept & {"train/bee/0.png", "train/bee/1.png", "train/bee/3.png"}


@pytest.mark.slow
def test_skipped_images_are_listed_and_exit_with_0(check: Callable, tmp_path: Path):
    root = write_set(tmp_path / "set")
    (root / "train" / "bee" / "3.png").write_bytes(b"<html>")
    done = check(root, "data.on_bad_image=skip")
    assert "1 image that cannot be read is left out" in done.stdout
    [row] = rows(tmp_path / "logs" / "check" / "one" / "bad_images.csv")
    assert row["path"] == "train/bee/3.png"
    assert row["reason"].startswith("is not an image")


@pytest.mark.slow
def test_show_augment_writes_one_image_and_nothing_else_and_another_page_is_refused(check: Callable, tmp_path: Path):
    folder = tmp_path / "logs" / "check" / "one"
    refused = check(write_set(tmp_path / "set"), "show=everything", returncode=2)
    assert refused.stderr == "error: show=everything is not one of all, augment.\n"
    assert not folder.exists()
    done = check(tmp_path / "set", "show=augment", "augment=crop_flip")
    assert [path.name for path in folder.iterdir()] == ["augment.png"]
    assert min(Image.open(folder / "augment.png").size) > 8 * 48
    assert "augment.png" in done.stdout


@pytest.mark.slow
def test_a_set_without_a_readable_training_image_is_refused_after_its_list_is_written(check: Callable, tmp_path: Path):
    root = write_set(tmp_path / "set", num_train=2)
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"")
    done = check(root, returncode=2)
    assert "no training image can be read; see " in done.stderr
    assert len(rows(tmp_path / "logs" / "check" / "one" / "bad_images.csv")) == 4


@pytest.mark.slow
def test_a_class_without_images_is_refused_after_the_bad_images_are_listed(check: Callable, tmp_path: Path):
    root = write_set(tmp_path / "set")
    (root / "train" / "wasp").mkdir()
    for number in range(12):
        (root / "train" / "bee" / f"bad{number:02d}.jpg").write_bytes(b"damaged")
    done = check(root, returncode=2)
    assert "12 of 48 images cannot be read: train/bee/bad00.jpg, train/bee/bad01.jpg, " in done.stdout
    assert "train/bee/bad09.jpg and 2 more\n" in done.stdout
    assert len(rows(tmp_path / "logs" / "check" / "one" / "bad_images.csv")) == 12
    assert done.stderr.startswith("error: the dataset has no training images of class 'wasp'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_what_is_ignored_and_split_off_is_logged_once_and_the_next_commands_work(
    check: Callable, command: Callable, tmp_path: Path
):
    root = write_set(tmp_path / "set")
    shutil.rmtree(root / "val")
    (root / "train" / "bee" / "bad.jpg").write_bytes(b"damaged")
    (root / "train" / "bee" / "notes.txt").write_text("none")
    done = check(root, "data.on_bad_image=error", returncode=1)
    assert [done.stdout.count(word) for word in ("ignored 1 entry", "split off the", "left out")] == [1, 1, 0]
    assert done.stderr == "error: 1 finding (marked !) needs a decision before training\n"
    show, train = done.stdout.partition("next:\n")[2].splitlines()
    assert train.split().count("data.on_bad_image=skip") == 1
    assert "data.on_bad_image=error" not in train
    done = command(*shlex.split(show)[1:], f"paths.log_dir={tmp_path / 'logs'}")
    assert done.returncode == 0, done.stderr
