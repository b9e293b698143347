"""The real CIFAR-10: splits, statistics, the saved array, and errors of missing or damaged files."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from imago import download
from imago.data import cifar10
from imago.data.cifar10 import BATCHES_FOLDER, CLASS_NAMES, SHA256_BY_FILE, CIFAR10DataModule, saved_array
from imago.data.dataset import Splits
from imago.data.image_statistics import channel_statistics
from imago.errors import DataError


def module(root: Path | None, data_dir: Path) -> CIFAR10DataModule:
    loading = {"batch_size": 128, "num_workers": 0, "augment": {}, "seed": 0}
    return CIFAR10DataModule(str(root) if root else None, str(data_dir), val_fraction=0.1, **loading)


@pytest.fixture(scope="module")
def data_dir(real_data, tmp_path_factory):
    """Return a directory with the saved array, shared by all tests here and removed after them: it takes 185 MB."""
    directory = tmp_path_factory.mktemp("cifar10")
    saved_array(real_data, directory)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def splits(real_data, data_dir) -> Splits:
    data = module(real_data, data_dir)
    data.set_up_data()
    return data.splits


@pytest.fixture
def linked(real_data, tmp_path) -> Path:
    """Return a directory of links to the real batch files, of which a test may replace some."""
    root = tmp_path / "linked"
    (root / BATCHES_FOLDER).mkdir(parents=True)
    for name in SHA256_BY_FILE:
        (root / BATCHES_FOLDER / name).symlink_to(real_data / BATCHES_FOLDER / name)
    return root


# The images


@pytest.mark.needs_data
@pytest.mark.slow
def test_the_splits_have_45000_5000_and_10000_images_and_the_same_share_of_every_class(splits, data_dir):
    for samples, count in ((splits.train, 4500), (splits.val, 500), (splits.test, 1000)):
        assert samples.images.shape == (10 * count, 3, 32, 32)
        assert np.bincount(samples.labels).tolist() == [count] * 10
    train_and_val = Counter(image.tobytes() for part in (splits.train, splits.val) for image in part.images)
    kept = np.load(data_dir / "cache" / "cifar10.npy", mmap_mode="r")["image"][:50_000]
    assert train_and_val == Counter(image.tobytes() for image in kept)


@pytest.mark.needs_data
@pytest.mark.slow
def test_images_and_labels_equal_those_of_torchvision(splits, real_data):
    from torchvision.datasets import CIFAR10

    official = CIFAR10(str(real_data), train=False)
    assert tuple(official.classes) == CLASS_NAMES
    np.testing.assert_array_equal(splits.test.labels, official.targets)
    np.testing.assert_array_equal(splits.test.images.transpose(0, 2, 3, 1), official.data)
    official = CIFAR10(str(real_data), train=True)
    wanted = Counter((image.tobytes(), label) for image, label in zip(official.data, official.targets, strict=True))
    parts = [(part.images.transpose(0, 2, 3, 1), part.labels.tolist()) for part in (splits.train, splits.val)]
    assert wanted == Counter((image.tobytes(), label) for part in parts for image, label in zip(*part, strict=True))


@pytest.mark.needs_data
@pytest.mark.slow
def test_mean_and_std_are_those_of_the_50000_training_images(data_dir, real_data):
    images = np.load(data_dir / "cache" / "cifar10.npy", mmap_mode="r")["image"][:50_000]
    statistics = channel_statistics(images.transpose(0, 2, 3, 1))
    preprocess = module(real_data, data_dir).preprocess
    assert preprocess.mean == pytest.approx(statistics["mean"], abs=5.1e-5)
    assert preprocess.std == pytest.approx(statistics["std"], abs=5.1e-5)


# Read once


@pytest.mark.needs_data
@pytest.mark.slow
def test_the_saved_array_is_enough_without_the_batch_files(data_dir, monkeypatch):
    monkeypatch.delenv("IMAGO_DATA_DIR")
    monkeypatch.setattr(cifar10, "_download", None)  # calling it would fail
    assert len(module(None, data_dir).load_dataset()[1]["test"]) == 10_000


@pytest.mark.needs_data
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "a flipped bit"])
def test_a_damaged_array_is_written_again(damage: str, data_dir, real_data, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(cifar10, "_save_array", lambda root, kept: written.append((root, kept)))
    kept = tmp_path / "cache" / "cifar10.npy"
    kept.parent.mkdir()
    content = bytearray((data_dir / "cache" / "cifar10.npy").read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content if damage == "a flipped bit" else content[:-1])
    saved_array(real_data, tmp_path)
    assert written == [(real_data, kept)]


@pytest.mark.needs_data
@pytest.mark.slow
@pytest.mark.parametrize("is_typed", [True, False])
def test_a_copy_with_other_labels_is_not_replaced_by_the_array_of_an_earlier_run(
    is_typed: bool, linked, data_dir, monkeypatch
):
    batch = linked / BATCHES_FOLDER / "test_batch"
    content = batch.read_bytes()
    batch.unlink()
    batch.write_bytes(content.replace(b"K\x03", b"K\x04", 1))  # the first label 3, a cat, becomes 4, a deer
    monkeypatch.setenv("IMAGO_DATA_DIR", str(linked))
    with pytest.raises(
        DataError, match=r"test_batch is damaged or not that of the published CIFAR-10 \(sha256 "
    ) as caught:
        saved_array(linked if is_typed else None, data_dir)
    assert "data=image_folder" in str(caught.value)


@pytest.mark.needs_data
def test_a_full_disk_is_a_data_error_and_leaves_no_partial_file(real_data, tmp_path, monkeypatch):
    def full(file, records):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cifar10, "_verify", lambda root: None)
    monkeypatch.setattr(cifar10, "NUM_IMAGES", 10)
    monkeypatch.setattr(
        "torchvision.datasets.CIFAR10", lambda *_, **__: SimpleNamespace(data=np.zeros((1, 1, 1, 1)), targets=0)
    )
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"cifar10\.npy cannot be written: No space left on device; 185 MB"):
        saved_array(real_data, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


# Missing or damaged


def test_the_error_of_missing_data_without_a_network_names_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGO_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(download, "is_reachable", lambda url: False)
    with pytest.raises(DataError) as caught:
        saved_array(None, tmp_path / "data")
    for word in (BATCHES_FOLDER, str(tmp_path / "data"), str(tmp_path / "elsewhere"), "IMAGO_DATA_DIR", "data.root"):
        assert word in str(caught.value)
    assert "data=shapes needs no data" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batch_files_are_found_in_imago_data_dir_and_those_in_the_data_directory_come_first(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGO_DATA_DIR", str(tmp_path / "elsewhere"))
    for directory in (tmp_path / "elsewhere", tmp_path / "data"):
        (directory / BATCHES_FOLDER).mkdir(parents=True)
        with pytest.raises(DataError, match=f"{directory}.* is missing"):
            saved_array(None, tmp_path / "data")


@pytest.mark.parametrize(("name", "fault"), [("nowhere", "does not exist"), (".", f"has no folder {BATCHES_FOLDER}")])
def test_a_wrong_root_names_the_setting(tmp_path, name: str, fault: str):
    with pytest.raises(DataError, match=rf"data\.root={tmp_path / name} {fault}"):
        saved_array(tmp_path / name, tmp_path)


@pytest.mark.needs_data
def test_a_flipped_bit_in_a_batch_file_is_detected_and_a_missing_file_is_named(linked, tmp_path):
    path = linked / BATCHES_FOLDER / "data_batch_1"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data_batch_1 is damaged or not .*\(sha256 "):
        saved_array(linked, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="data_batch_1 is missing"):
        saved_array(linked, tmp_path)
    assert not (tmp_path / "cache").exists()
