"""Datasets of torchvision by name: read from small files in their own format, and errors of missing ones."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from imago import download
from imago.data.torchvision_dataset import SPLIT_ARGUMENTS, TorchvisionDataModule
from imago.errors import ConfigError, DataError
from imago.images import Preprocess

NUM_TRAIN, NUM_TEST = 60, 20


def module(name: str, data_dir: Path, **settings) -> TorchvisionDataModule:
    given = {"batch_size": 8, "num_workers": 0, "augment": {}, "seed": 0, "val_fraction": 0.2, "test_fraction": 0.2}
    return TorchvisionDataModule(name, str(data_dir), **(given | settings))


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array as MNIST's files are: two zero bytes, type 8 (uint8), number of axes, their lengths, the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A small set in MNIST's format: every image is filled with ten times its label."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        labels = np.arange(count) % 10
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", np.full((count, 28, 28), 10) * labels[:, None, None])
    return tmp_path


class MixedSizes:
    """A dataset like Food101: images of several sizes, no list of class names."""

    def __init__(self, root: str, split: str, download: bool = False) -> None:
        self.split = split

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (40 + index, 30), 20 * index), index % 3


def test_a_dataset_is_loaded_by_name_with_its_test_split_size_and_statistics(mnist: Path):
    data = module("MNIST", mnist)
    data.set_up_data()
    assert [len(split) for _, split in data.splits.items()] == [50, 10, NUM_TEST]
    assert data.class_names[3] == "3 - three"
    assert {name.split("/")[0] for name in data.splits.test.names} == {"test"}
    for _, split in data.splits.items():
        assert split.images.shape[1:] == (3, 28, 28)
        np.testing.assert_array_equal(split.images[:, 0, 5, 5], 10 * split.labels)
    values = data.splits.train.images[:, 0] / 255
    expected = Preprocess(28, 28, "center", pytest.approx([values.mean()] * 3), pytest.approx([values.std()] * 3))
    assert data.preprocess == expected


def test_images_of_several_sizes_need_data_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torchvision.datasets, "Food101", MixedSizes)
    with pytest.raises(DataError, match="not squares of one size, e.g. image 0: 40x30; data.size=SIDE"):
        module("Food101", tmp_path).set_up_data()
    data = module("Food101", tmp_path, size=16)
    data.set_up_data()
    assert data.splits.test.images.shape == (12, 3, 16, 16)
    assert data.class_names == ("0", "1", "2")


def test_a_dataset_without_a_test_split_is_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Whole(MixedSizes):
        def __init__(self, root: str, download: bool = False) -> None:
            super().__init__(root, "all")

    monkeypatch.setattr(torchvision.datasets, "EuroSAT", Whole)
    data = module("EuroSAT", tmp_path, size=16, test_fraction=0.25)
    data.set_up_data()
    assert [len(split) for _, split in data.splits.items()] == [6, 3, 3]


def test_an_unknown_name_is_refused_with_the_nearest_ones():
    with pytest.raises(
        ConfigError, match="data.name=FashonMNIST is not a supported dataset; nearest first: FashionMNIST,"
    ):
        module("FashonMNIST", Path())


def test_a_missing_dataset_without_a_network_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(download, "is_reachable", lambda url: False)
    with pytest.raises(DataError, match="CIFAR100 is not in .* cannot be downloaded .no network.; put torchvision's"):
        module("CIFAR100", tmp_path).set_up_data()


@pytest.mark.parametrize("name", sorted(SPLIT_ARGUMENTS))
def test_every_name_is_a_class_of_torchvision_that_takes_these_arguments(name: str):
    signature = inspect.signature(getattr(torchvision.datasets, name).__init__)
    for how in SPLIT_ARGUMENTS[name].values():
        assert set(how) <= set(signature.parameters) | ({"train"} if name == "EMNIST" else set())
