"""Samples in files: what is damaged is left out, a split is written down and taken back, classes are balanced."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imago.data import image_cache
from imago.data.dataset import LabeledFiles
from imago.data.image_folder import ImageFolderDataModule
from imago.errors import ConfigError, DataError
from imago.images import Preprocess, read_image, resize_and_crop

NUM = {"ant": 30, "bee": 20}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of class folders; every image has another color."""
    for name, count in NUM.items():
        for number in range(count):
            path = tmp_path / "set" / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 12), (5 * number, 0, 0)).save(path)
    return tmp_path / "set"


def module(root: Path, **settings) -> ImageFolderDataModule:
    given = {"val_fraction": 0.2, "test_fraction": 0.1, "cache": "none", "cache_dir": str(root.parent / "cache")}
    loading = {"batch_size": 8, "num_workers": 0, "augment": {}, "seed": 0}
    data = ImageFolderDataModule(root=str(root), **(given | loading | settings))
    data.set_up_data()
    return data


def split_names(data: ImageFolderDataModule) -> dict[str, set[str]]:
    return {split: set(part.names) for split, part in data.splits.named()}


def spoil(root: Path) -> dict[str, str]:
    """Damage three images; gives what is wrong with each."""
    whole = (root / "ant" / "03.png").read_bytes()
    (root / "ant" / "03.png").write_bytes(whole[: len(whole) // 2])
    (root / "ant" / "04.png").write_bytes(b"")
    (root / "bee" / "05.png").write_bytes(b"<html>not found</html>")
    return {"ant/03.png": "damaged", "ant/04.png": "empty", "bee/05.png": "not a"}


# Bad images


def test_skip_leaves_the_bad_ones_out_of_every_split_and_lists_them(root: Path, caplog: pytest.LogCaptureFixture):
    reasons = spoil(root)
    with caplog.at_level(logging.INFO):
        data = module(root, on_bad_image="skip")
    assert not set.union(*split_names(data).values()) & set(reasons)
    assert sum(len(part) for _, part in data.splits.named()) == 47
    assert "left out 3 images that cannot be read (6 %)" in caplog.text
    data.write_split(root.parent)
    with (root.parent / "bad_images.csv").open() as file:
        listed = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert listed.keys() == reasons.keys()
    assert all(reasons[path] in reason for path, reason in listed.items())


def test_a_class_without_a_readable_image_is_an_error_even_with_skip(root: Path):
    for path in (root / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class 'bee' of .* has no training images that can be read"):
        module(root, on_bad_image="skip")


def test_a_set_without_bad_images_writes_no_list(root: Path):
    data = module(root, on_bad_image="skip")
    data.write_split(root.parent)
    assert not (root.parent / "bad_images.csv").exists()


def test_an_unknown_way_with_bad_images_is_refused(root: Path):
    with pytest.raises(ConfigError, match="data.on_bad_image=ignore is not one of error, skip"):
        module(root, on_bad_image="ignore")


# Kept decoded

CROPS = {"random_resized_crop_scale": [0.3, 1.0], "flip_probability": 0.5}
SHIFTS = {"crop_padding_px": 2, "flip_probability": 0.5}
SHOWN = Preprocess(10, 12, "center", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A folder of class folders; 40 images of noise, 24 px wide and 16 px high: 46,080 bytes decoded."""
    random = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "noise" / ("ant", "bee")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "noise"


def kept(root: Path, cache: str, **settings) -> ImageFolderDataModule:
    data = module(root, cache=cache, **settings)
    data.preprocess = SHOWN
    return data


def seen(data: ImageFolderDataModule) -> list[torch.Tensor]:
    """Everything that two epochs of training and validation show."""
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
def test_no_epoch_decodes_what_is_kept_and_every_pixel_is_the_same(
    noise: Path, monkeypatch: pytest.MonkeyPatch, cache: str, decoded_px: int | None, augment: dict
):
    expected = seen(kept(noise, "none", augment=augment, decoded_px=decoded_px))
    data = kept(noise, cache, augment=augment, decoded_px=decoded_px)
    assert not data.keeps_decoded
    data.keep_decoded(num_processes=1, num_epochs=2)
    assert data.keeps_decoded
    forbid_decoding(monkeypatch)
    found = seen(data)
    assert len(found) == 2 * 2 * (3 + 1)  # epochs x parts of a batch x batches of 28 and 8 images
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_validation_is_kept_as_evaluation_shows_it_whatever_the_augmentation(
    noise: Path, monkeypatch: pytest.MonkeyPatch, cache: str
):
    data = kept(noise, cache, augment=CROPS)
    data.keep_decoded(num_processes=1, num_epochs=2)
    forbid_decoding(monkeypatch)
    ((images, _),) = data.val_dataloader()
    squares = [resize_and_crop(read_image(path), SHOWN) for path in data.splits.val.paths]
    np.testing.assert_array_equal(images, np.stack(squares).transpose(0, 3, 1, 2))


def test_auto_keeps_nothing_for_a_single_epoch_and_says_so(noise: Path):
    data = kept(noise, "auto")
    assert data.keep_decoded(num_processes=1, num_epochs=1).endswith(": one epoch needs each image once")
    assert not data.keeps_decoded
    assert not data.cache_dir.exists()
    assert "one epoch" not in data.keep_decoded(num_processes=1, num_epochs=1.5)
    assert data.keeps_decoded


@pytest.mark.parametrize(
    ("cache", "num_epochs", "note"),
    [
        ("none", 5, "nowhere: as typed"),
        ("ram", 5, "in memory: 0.0 MiB, as typed"),
        ("ram", 1, "in memory: 0.0 MiB, as typed"),
        ("disk", 5, "in CACHE: 0.0 MiB, as typed"),
        ("disk", 1, "in CACHE: 0.0 MiB, as typed"),
        ("auto", 5, "in memory: 0.0 MiB of 3.0 GiB available"),
        ("auto", 1, "nowhere: one epoch needs each image once"),
    ],
)
def test_it_says_where_decoded_images_are_kept_and_why(
    noise: Path, monkeypatch: pytest.MonkeyPatch, cache: str, num_epochs: int, note: str
):
    monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: 3 * 2**30)
    data = kept(noise, cache)
    assert data.keep_decoded(1, num_epochs).replace(str(data.cache_dir), "CACHE") == note
    assert data.keeps_decoded is not note.startswith("nowhere")
    assert any(data.cache_dir.rglob("*.pixels")) is (cache == "disk")


def test_auto_takes_what_an_earlier_run_kept_on_disk(noise: Path, monkeypatch: pytest.MonkeyPatch):
    expected = seen(kept(noise, "none", augment=CROPS))
    kept(noise, "disk", augment=CROPS).keep_decoded(1, 2)
    forbid_decoding(monkeypatch)
    data = kept(noise, "auto", augment=CROPS)
    assert data.keep_decoded(1, 2).endswith(f"kept in {data.cache_dir} by an earlier run")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen(data), expected, strict=True))


# Validation is kept as squares of 10 px; training whole for its crops, scaled down if asked, else as squares too.
KEPT_BYTES = [
    (CROPS, None, 28 * 24 * 16 * 3 + 8 * 10 * 10 * 3),
    (CROPS, 8, 28 * 12 * 8 * 3 + 8 * 10 * 10 * 3),
    (SHIFTS, None, 36 * 10 * 10 * 3),
]


@pytest.mark.parametrize(("augment", "decoded_px", "num_bytes"), KEPT_BYTES)
def test_what_is_kept_is_as_large_as_was_estimated(
    noise: Path, monkeypatch: pytest.MonkeyPatch, augment: dict, decoded_px: int | None, num_bytes: int
):
    monkeypatch.setattr(image_cache, "free_disk_bytes", lambda _: num_bytes)
    data = kept(noise, "disk", augment=augment, decoded_px=decoded_px)
    data.keep_decoded(1, 5)
    assert sum(file.stat().st_size for file in data.cache_dir.glob("*.pixels")) == num_bytes
    monkeypatch.setattr(image_cache, "free_disk_bytes", lambda _: num_bytes - 1)
    with pytest.raises(ConfigError, match="data.cache=disk: the decoded images need .* data.cache=none keeps none"):
        kept(noise, "disk", augment=augment, decoded_px=decoded_px, cache_dir=str(noise.parent / "other")).keep_decoded(
            1, 5
        )


@pytest.mark.parametrize(("augment", "decoded_px", "num_bytes"), KEPT_BYTES)
def test_memory_must_hold_training_and_validation_of_every_process_that_is_still_to_come(
    noise: Path, monkeypatch: pytest.MonkeyPatch, augment: dict, decoded_px: int | None, num_bytes: int
):
    def keep_in_memory(num_processes: int, rank: int, available_bytes: int) -> str:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: available_bytes)
        return kept(noise, "ram", augment=augment, decoded_px=decoded_px).keep_decoded(num_processes, 5)

    for fitting in ((1, 0, num_bytes), (2, 0, 2 * num_bytes), (2, 1, num_bytes)):
        assert keep_in_memory(*fitting).startswith("in memory")
    for too_large in ((1, 0, num_bytes - 1), (2, 0, 2 * num_bytes - 1), (2, 1, num_bytes - 1)):
        with pytest.raises(ConfigError, match="data.cache=ram: the decoded images need"):
            keep_in_memory(*too_large)


# Splits on paper


def test_a_drawn_split_is_written_down_and_comes_back_whatever_the_seed(root: Path):
    first = module(root)
    first.write_split(root.parent)
    again = module(root, split_file=str(root.parent / "split.csv"), split_seed=7)
    assert split_names(again) == split_names(first)
    assert again.fingerprint() == first.fingerprint()


def test_a_split_that_the_source_gives_is_not_written_down(root: Path):
    given = root.parent / "copied"
    for split, part in split_names(module(root)).items():
        for name in part:
            (given / split / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).rename(given / split / name)
    module(given).write_split(root.parent)
    assert not (root.parent / "split.csv").exists()


def test_folds_of_a_folder_cover_it_and_share_one_test_split(root: Path):
    folds = [split_names(module(root, fold=fold, num_folds=3)) for fold in range(3)]
    assert folds[0]["test"] == folds[1]["test"] == folds[2]["test"]
    assert set.union(*(fold["val"] for fold in folds)) | folds[0]["test"] == set.union(*folds[0].values())


# Balance


def test_balanced_batches_show_both_classes_equally_often(root: Path):
    data = module(root, sampler="balanced")
    labels = np.concatenate([labels.numpy() for _, labels in data.train_dataloader()])
    assert abs(int((labels == 0).sum()) - int((labels == 1).sum())) <= 8  # a batch's worth is dropped


def test_repeated_images_are_augmented_anew(root: Path):
    for number in range(2, 20):
        (root / "bee" / f"{number:02d}.png").unlink()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels).save(root / "bee" / f"{number:02d}.png")
    data = module(root, sampler="balanced", augment={"crop_padding_px": 4, "flip_probability": 0.5}, test_fraction=0.01)
    bees = np.concatenate([images[labels == 1].numpy() for images, labels in data.train_dataloader()])
    assert len(np.unique(bees.reshape(len(bees), -1), axis=0)) > len(bees) / 2


def test_an_unknown_sampler_is_refused(root: Path):
    with pytest.raises(ConfigError, match="data.sampler=weighted is not one of shuffle, balanced"):
        module(root, sampler="weighted")
