"""A CSV list as a data set: its classes, its splits and where its paths start from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imago.data.image_list import ImageListDataModule
from imago.errors import ConfigError


def write(root: Path, lines: list[str], name: str = "list.csv") -> Path:
    """Write a list and the images that it names, each of another color."""
    for number, line in enumerate(lines[1:]):
        path = root / line.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (number, 0, 0)).save(path)
    (root / name).write_text("\n".join(lines) + "\n")
    return root / name


def module(list_file: Path, **settings) -> ImageListDataModule:
    given = {"val_fraction": 0.2, "test_fraction": 0.1, "cache": "none", "cache_dir": str(list_file.parent / "cache")}
    loading = {"batch_size": 4, "num_workers": 0, "augment": {}, "seed": 0}
    data = ImageListDataModule(str(list_file), **(given | loading | settings))
    data.set_up_data()
    return data


def test_the_list_says_which_image_is_where_and_of_which_class(tmp_path: Path):
    rows = [
        f"{split}_{name}_{n}.png,{name},{split}" for split in ("train", "val", "test") for name in "ba" for n in "12"
    ]
    data = module(write(tmp_path, ["path,label,split", *rows]))
    assert data.class_names == ("a", "b")
    for name, split in data.splits.named():
        assert [place.split("_")[:2] for place in split.names] == [
            [name, label] for label in np.array(data.class_names)[split.labels]
        ]
    images, labels = next(iter(data.test_dataloader()))
    assert images[:, 0, 0, 0].tolist() == [8, 9, 10, 11]
    assert labels.tolist() == [1, 1, 0, 0]


def test_without_the_column_split_it_is_split_as_a_folder_is(tmp_path: Path):
    data = module(write(tmp_path, ["path,label", *(f"{n}.png,{n % 2}" for n in range(40))]))
    assert [len(split) for _, split in data.splits.named()] == [28, 8, 4]
    assert data.drawn == ["test", "val"]


def test_paths_start_from_root_where_it_is_given(tmp_path: Path):
    listed = write(tmp_path / "images", ["path,label", *(f"{n}.png,{n % 2}" for n in range(40))])
    moved = listed.rename(tmp_path / "list.csv")
    data = module(moved, root=str(tmp_path / "images"))
    assert len(data.splits.train.read(0, data.class_names)) == 12


def test_a_run_s_own_split_comes_back_as_a_list(tmp_path: Path):
    first = module(write(tmp_path, ["path,label", *(f"{n}.png,{n % 2}" for n in range(40))]))
    first.write_split(tmp_path)
    again = module(tmp_path / "split.csv", split_seed=9)
    for (_, part), (_, other) in zip(first.splits.named(), again.splits.named(), strict=True):
        assert set(part.names) == set(other.names)


def test_no_list_is_refused():
    with pytest.raises(ConfigError, match="data.list_file has no value; give a CSV"):
        ImageListDataModule("", batch_size=4, num_workers=0, augment={}, seed=0, cache_dir="x")
