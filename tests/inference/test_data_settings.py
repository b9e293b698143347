"""The data settings of a run are read as data, and compared by the images that they name."""

import os
from pathlib import Path

import pytest

from imago.errors import UserError
from imago.inference.data_settings import image_source, read_data_settings


def test_the_images_of_a_run_are_its_own_however_their_folder_is_typed(tmp_path: Path):
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    own = image_source({"_target_": "x.Folder", "root": str(root), "val_fraction": 0.1})
    for typed in (os.path.relpath(root), f"{root}/../{root.name}", f"{tmp_path}/link"):
        assert image_source({"_target_": "x.Folder", "root": typed}) == own
    assert image_source({"_target_": "x.Folder", "root": str(tmp_path)}) != own
    train = {"_target_": "x.Toy", "a": 1, "b": 2}
    toy = image_source({"_target_": "x.Module", "train": train})
    assert image_source({"_target_": "x.Module", "train": dict(reversed(train.items())), "test": None}) == toy
    assert image_source({"_target_": "x.Module", "train": train | {"a": 2}}) != toy


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "config.yaml cannot be read"),
        ("a: 1", "config.yaml names no dataset"),
        ("data: 3", "config.yaml names no dataset"),
        ("data: {_target_: os.getcwd}\ntrust: [os]", "data._target_=os.getcwd is neither a Lightning"),
    ],
)
def test_a_run_without_a_readable_config_is_one_line(tmp_path: Path, text: str, reason: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_data_settings(tmp_path, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root", ["${oc.env:IMAGO_SECRET}", "${oc.${kind}:IMAGO_SECRET}"])
def test_a_saved_config_reads_no_variables_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str):
    monkeypatch.setenv("IMAGO_SECRET", "secret")
    target = "imago.data.file_datamodule.ImageFolderDataModule"
    (tmp_path / "config.yaml").write_text(f"kind: env\ndata: {{_target_: {target}, root: '{root}'}}")
    assert read_data_settings(tmp_path, [])["root"] == root


def test_the_paths_of_a_torch_dataset_are_compared_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    monkeypatch.chdir(tmp_path)
    sources = [
        image_source({"_target_": "x.Module", "train": {"_target_": "x.Folder", "roots": [path], "name": "a"}})
        for path in ("images", f"{tmp_path}/images", "link", "other")
    ]
    assert sources[0] == sources[1] == sources[2] != sources[3]


def test_the_fold_of_a_run_with_a_split_file_is_read_from_its_own_split(tmp_path: Path):
    settings = "_target_: imago.data.shapes.ShapesDataModule, split_file: /moved/list.csv, fold: 1"
    (tmp_path / "config.yaml").write_text(f"data: {{{settings}}}")
    assert read_data_settings(tmp_path, [])["fold"] == 1
    (tmp_path / "split.csv").write_text("path,label,split\n")
    found = read_data_settings(tmp_path, [])
    assert (found["split_file"], found["fold"]) == (str(tmp_path / "split.csv"), None)
    assert found["val_as_test"] is False
