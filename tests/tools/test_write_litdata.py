"""Datasets written by litdata's own `optimize`: files byte for byte, read alike by litdata and by data=litdata."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import write_litdata
from drawn_images import photo
from PIL import Image

from imago.data.chunks import ChunkFiles, read_set
from imago.data.dataset import LabeledArray
from imago.data.litdata_datamodule import LitDataModule
from imago.errors import ConfigError, DataError
from imago.paths import PROJECT_ROOT

pytest.importorskip("litdata")
GUIDE = (PROJECT_ROOT / "docs" / "streaming.md").read_text()


def opened(root: Path, **settings: Any) -> LitDataModule:
    loading: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "augment": {}, "seed": 0}
    own = {"cache_dir": "unused", "cache_gb": 1, "shuffle_window": 2, "max_pixels": 10**6}
    data = LitDataModule(str(root), **(loading | own | {"val_fraction": 0.2, "test_fraction": 0.2} | settings))
    data.set_up_data()
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of two classes, as JPEG and PNG files."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(20):
        file = root / ("ant", "bee")[index % 2] / f"{index:02d}.{('jpg', 'png')[index // 2 % 2]}"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(photo(index, 40)).save(file)
    return root


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunks of it, written by the first command of the guide."""
    command = "python tools/write_litdata.py ~/flowers ~/flowers-chunks"
    assert command in GUIDE
    target = tmp_path_factory.mktemp("out") / "chunks"
    write_litdata.main([str(folder), str(target), "--chunk-mb", "0.005"])
    return target


def test_every_file_is_copied_as_it_is_with_its_class(folder: Path, written: Path):
    data = opened(written)
    assert data.class_names == ("ant", "bee")
    found = {
        (hashlib.sha256(image).hexdigest(), data.class_names[label])
        for _, split in data.splits.items()
        for image, label, _ in map(split.stored, range(len(split)))
    }
    expected = {(hashlib.sha256(file.read_bytes()).hexdigest(), file.parent.name) for file in folder.glob("*/*")}
    assert found == expected
    assert len(data.files.chunks) > 3


def test_imago_json_has_classes_labels_and_hashes_and_the_samples_are_shuffled(written: Path):
    sidecar = json.loads((written / "imago.json").read_text())
    assert sidecar["class_names"] == ["ant", "bee"]
    assert sorted(sidecar["labels"]) == [0] * 10 + [1] * 10
    assert sidecar["labels"] != sorted(sidecar["labels"])
    for name, digest in sidecar["sha256"].items():
        assert hashlib.sha256((written / name).read_bytes()).hexdigest() == digest
    assert len(sidecar["sha256"]) == len([*written.glob("*.bin")])


def test_litdata_reads_the_same_samples_in_the_same_order(written: Path, tmp_path: Path):
    """litdata's own reader is the second, independent way; it decodes by torchvision, so only PNG files are exact."""
    from litdata import StreamingDataset

    theirs = StreamingDataset(str(written), shuffle=False, cache_dir=str(tmp_path))
    data = opened(written)
    samples = {
        int(position): (split.read(index), int(split.labels[index]), split.stored(index)[0])
        for _, split in data.splits.items()
        for index, position in enumerate(split.positions)
    }
    assert len(theirs) == len(samples) == 20
    for position in range(20):
        pixels, label, stored = samples[position]
        assert theirs[position]["label"] == label
        image = np.asarray(theirs[position]["image"])
        image = image.transpose(1, 2, 0) if image.shape[0] == 3 else image
        if stored.startswith(b"\x89PNG"):
            np.testing.assert_array_equal(image, pixels)
        else:
            assert np.abs(image.astype(int) - pixels).mean() < 2


def test_a_list_with_splits_is_written_to_a_folder_for_each(folder: Path, tmp_path: Path):
    files = sorted(folder.glob("*/*"))
    rows = [f"{file},{file.parent.name},{('train', 'train', 'val', 'test')[i % 4]}" for i, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    write_litdata.main([str(tmp_path / "list.csv"), str(tmp_path / "out"), "--in-order"])
    data = opened(tmp_path / "out")
    assert [len(split) for _, split in data.splits.items()] == [10, 5, 5]
    assert data.class_names == ("ant", "bee")
    assert data.random_splits == []


def test_a_directory_with_files_is_refused_as_litdata_would_delete_some(folder: Path, tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r" is not empty; empty it, or write to another directory\.$"):
        write_litdata.main([str(folder), str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]


def test_all_files_that_cannot_be_read_are_listed_before_anything_is_written(tmp_path: Path):
    for name in ("ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(0, 20)).save(tmp_path / "in" / name)
    for name in ("ant/1.png", "bee/0.png"):
        (tmp_path / "in" / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"^2 images cannot be read: ant/1.png, bee/0.png; remove or mend them\.$"):
        write_litdata.main([str(tmp_path / "in"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_one_path_alone_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        write_litdata.main([str(folder)])
    assert caught.value.code == 2
    assert "error: type the source and the target" in capsys.readouterr().err


def test_arrays_as_those_of_cifar10_are_written_without_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = np.stack([photo(index, 32) for index in range(12)]).transpose(0, 3, 1, 2)
    samples = LabeledArray(images, np.arange(12) % 3, tuple(map(str, range(12))))
    monkeypatch.setattr(write_litdata, "open_source", lambda source: (("a", "b", "c"), {"train": samples}))
    write_litdata.main(["cifar10", str(tmp_path / "out"), "--in-order", "--chunk-mb", "0.02", "--workers", "2"])
    data = opened(tmp_path / "out")
    assert {chunk.kinds["image"] for chunk in data.files.chunks} == {"numpy"}
    for _, split in data.splits.items():
        for index in range(len(split)):
            pixels = split.read(index)
            match = [number for number in range(12) if np.array_equal(pixels, photo(number, 32))]
            assert [number % 3 for number in match] == [split.labels[index]]


def test_foreign_chunks_get_an_imago_json(written: Path, tmp_path: Path):
    for file in written.glob("*"):
        if file.name != "imago.json" and file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    write_litdata.main(["--index", str(tmp_path)])
    labels = read_set(ChunkFiles(str(written), tmp_path, 0), "")[1]["labels"]
    found = read_set(ChunkFiles(str(tmp_path), tmp_path, 0), "")
    assert found[1]["labels"].tolist() == labels.tolist()
    assert found[1]["class_names"] == ()
    assert all(chunk.sha256 for chunk in found[0])
