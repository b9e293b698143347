"""Decoded images kept in memory or on disk by `FileDataModule`: same pixels, no second decoding, enough space."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imago.data import image_cache
from imago.data.dataset import LabeledFiles
from imago.data.file_datamodule import ImageFolderDataModule
from imago.errors import ConfigError
from imago.images import Preprocess

CROPS = {"random_resized_crop_scale": [0.3, 1.0], "flip_probability": 0.5}
SHIFTS = {"crop_padding_px": 2, "flip_probability": 0.5}
SHOWN = Preprocess(10, 12, "center", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two class folders; 40 images of noise, 24 px wide and 16 px high: 46,080 bytes decoded."""
    root = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    for number in range(40):
        path = root / ("ant", "bee")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(autouse=True)
def _cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the directory of `cached`


def cached(root: Path, cache: str, **settings) -> ImageFolderDataModule:
    split = {"val_fraction": 0.2, "test_fraction": 0.1, "cache": cache, "cache_dir": "cache"}
    loading = {"batch_size": 8, "num_workers": 0, "augment": {}, "seed": 0}
    data = ImageFolderDataModule(root=str(root), **(split | loading | settings))
    data.set_up_data()
    data.preprocess = SHOWN
    return data


def seen(data: ImageFolderDataModule) -> list[torch.Tensor]:
    """Return all batches of two epochs of training and validation."""
    batches = []
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        batches += [*loader, *data.val_dataloader()]
    return [part for batch in batches for part in batch]


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self, index, class_names):
        raise AssertionError(f"{self.names[index]} is decoded again")

    monkeypatch.setattr(LabeledFiles, "read", read)


@pytest.mark.parametrize("augment", [CROPS, SHIFTS, {}], ids=["crops", "shifts", "none"])
@pytest.mark.parametrize(("cache", "decoded_px"), [("ram", None), ("disk", None), ("auto", 14)])
def test_cached_images_are_not_decoded_again_and_every_pixel_is_the_same(
    noise: Path, monkeypatch: pytest.MonkeyPatch, cache: str, decoded_px: int | None, augment: dict
):
    expected = seen(cached(noise, "none", augment=augment, decoded_px=decoded_px))
    data = cached(noise, cache, augment=augment, decoded_px=decoded_px)
    assert not data.is_cached
    data.fill_cache(num_processes=1, num_epochs=2)
    assert data.is_cached
    forbid_decoding(monkeypatch)
    found = seen(data)
    assert len(found) == 2 * 2 * (3 + 1)  # epochs x parts of a batch x batches of 28 and 8 images
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("cache", "num_epochs", "note"),
    [
        ("none", 5, "none (data.cache=none)"),
        ("ram", 5, "in memory: 0.0 MiB, as typed"),
        ("disk", 1, "in cache: 0.0 MiB, as typed"),
        ("auto", 5, "in memory: 0.0 MiB of 3.0 GiB available"),
        ("auto", 1, "none (one epoch reads each image once)"),
        ("auto", 1.5, "in memory: 0.0 MiB of 3.0 GiB available"),
    ],
)
def test_fill_cache_returns_where_images_are_kept_and_why(
    noise: Path, monkeypatch: pytest.MonkeyPatch, cache: str, num_epochs: float, note: str
):
    monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: 3 * 2**30)
    data = cached(noise, cache)
    assert data.fill_cache(1, num_epochs) == note
    assert data.is_cached is not note.startswith("none")
    assert any(data.cache_dir.rglob("*.pixels")) is (cache == "disk")


def test_auto_uses_the_images_that_an_earlier_run_kept_on_disk(noise: Path, monkeypatch: pytest.MonkeyPatch):
    expected = seen(cached(noise, "none", augment=CROPS))
    cached(noise, "disk", augment=CROPS).fill_cache(1, 2)
    forbid_decoding(monkeypatch)
    data = cached(noise, "auto", augment=CROPS)
    assert data.fill_cache(1, 2).endswith(f"kept in {data.cache_dir} by an earlier run")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen(data), expected, strict=True))


# Validation images are cached as squares of 10 px; training images whole if they are cropped, else as squares, too.
CACHED_BYTES = [
    (CROPS, None, 28 * 24 * 16 * 3 + 8 * 10 * 10 * 3),
    (CROPS, 8, 28 * 12 * 8 * 3 + 8 * 10 * 10 * 3),
    (SHIFTS, None, 36 * 10 * 10 * 3),
]


@pytest.mark.parametrize(("augment", "decoded_px", "num_bytes"), CACHED_BYTES)
def test_the_cached_images_have_the_estimated_size(
    noise: Path, monkeypatch: pytest.MonkeyPatch, augment: dict, decoded_px: int | None, num_bytes: int
):
    monkeypatch.setattr(image_cache, "free_disk_bytes", lambda _: num_bytes)
    data = cached(noise, "disk", augment=augment, decoded_px=decoded_px)
    data.fill_cache(1, 5)
    assert sum(file.stat().st_size for file in data.cache_dir.glob("*.pixels")) == num_bytes
    monkeypatch.setattr(image_cache, "free_disk_bytes", lambda _: num_bytes - 1)
    with pytest.raises(ConfigError, match="data.cache=disk: the decoded images need .* data.cache=none disables"):
        cached(noise, "disk", augment=augment, decoded_px=decoded_px, cache_dir="other").fill_cache(1, 5)


def test_memory_must_hold_the_images_of_every_process_that_has_not_started_yet(
    noise: Path, monkeypatch: pytest.MonkeyPatch
):
    augment, decoded_px, num_bytes = CACHED_BYTES[1]

    def keep_in_memory(num_processes: int, rank: int, available_bytes: int) -> str:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: available_bytes)
        return cached(noise, "ram", augment=augment, decoded_px=decoded_px).fill_cache(num_processes, 5)

    for fitting in ((1, 0, num_bytes), (2, 0, 2 * num_bytes), (2, 1, num_bytes)):
        assert keep_in_memory(*fitting).startswith("in memory")
    for too_large in ((1, 0, num_bytes - 1), (2, 0, 2 * num_bytes - 1), (2, 1, num_bytes - 1)):
        with pytest.raises(ConfigError, match="data.cache=ram: the decoded images need"):
            keep_in_memory(*too_large)
