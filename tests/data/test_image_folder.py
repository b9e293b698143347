"""A folder of images as a data set: its splits, its preprocess record, its batches, and images that are damaged."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import summary, train

from imago.data.image_folder import ImageFolderDataModule
from imago.data.sampling import BatchKey
from imago.errors import ConfigError, DataError
from imago.images import read_image, resize_and_crop

STANDARD = {"random_resized_crop_scale": [0.35, 1.0], "flip_probability": 0.5}


def noise(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Save an image of random pixels; `size` is width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (12, 12)) -> Path:
    """Fill folders such as `train/cat` with that many images, no two alike."""
    seed = 0
    for name, count in counts.items():
        for index in range(count):
            noise(root / name / f"{index}.png", size, seed := seed + 1)
    return root


def module(root: Path, num_workers: int | None = 0, augment: dict | None = None, **settings) -> ImageFolderDataModule:
    given = {"val_fraction": 0.2, "test_fraction": 0.1, "cache": "none", "cache_dir": str(root.parent / "cache")}
    loading = {"batch_size": 8, "num_workers": num_workers, "augment": augment or {}, "seed": 0}
    data = ImageFolderDataModule(root=str(root), **(given | loading | settings))
    data.set_up_data()
    return data


def names(data: ImageFolderDataModule, split: str) -> set[str]:
    files = dict(data.splits.named())[split]
    return {str(path.relative_to(data.root)) for path in files.paths}


def counts(data: ImageFolderDataModule) -> dict[str, list[int]]:
    return {split: np.bincount(files.labels, minlength=2).tolist() for split, files in data.splits.named()}


def everything(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


# Splits


def test_class_folders_alone_are_split_70_20_10_in_every_class(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        data = module(folder(tmp_path, {"ant": 10, "bee": 20}))
    assert data.class_names == ("ant", "bee")
    assert counts(data) == {"train": [7, 14], "val": [2, 4], "test": [1, 2]}
    assert "split off the 30 training images, stratified: 3 for test and 6 for val" in caplog.text


def test_no_image_is_in_two_splits(tmp_path: Path):
    data = module(folder(tmp_path, {"ant": 10, "bee": 20}))
    parts = [names(data, split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 30


def test_splits_in_folders_are_taken_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kinds = {"train/ant": 5, "train/bee": 4, "val/ant": 3, "val/bee": 2, "test/bee": 2}
    with caplog.at_level(logging.INFO):
        data = module(folder(tmp_path, kinds))
    assert counts(data) == {"train": [5, 4], "val": [3, 2], "test": [0, 2]}
    assert caplog.text == ""


def test_without_a_test_folder_the_test_split_comes_out_of_train_and_val_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder(tmp_path, {"train/ant": 20, "train/bee": 10, "val/ant": 3, "val/bee": 2})
    with caplog.at_level(logging.INFO):
        data = module(tmp_path)
    assert counts(data) == {"train": [18, 9], "val": [3, 2], "test": [2, 1]}
    assert all(name.startswith("train/") for name in names(data, "test"))
    assert "training images, stratified: 3 for test; data.val_as_test=true tests on val instead" in caplog.text


def test_val_as_test_tests_on_the_folder_s_val_and_splits_val_off_train(tmp_path: Path):
    folder(tmp_path, {"train/ant": 20, "train/bee": 10, "val/ant": 3, "val/bee": 2})
    data = module(tmp_path, val_as_test=True)
    assert counts(data) == {"train": [16, 8], "val": [4, 2], "test": [3, 2]}
    assert all(name.startswith("val/") for name in names(data, "test"))


@pytest.mark.parametrize(
    ("present", "fault"), [(("train", "val", "test"), "there is a test split"), (("train",), "there is no val split")]
)
def test_val_as_test_where_it_cannot_work_is_refused(tmp_path: Path, present: tuple[str, ...], fault: str):
    folder(tmp_path, {f"{split}/{name}": 4 for split in present for name in ("ant", "bee")})
    with pytest.raises(ConfigError, match=f"^data.val_as_test=true: {fault} in this data set; leave the setting out.$"):
        module(tmp_path, val_as_test=True)


def test_train_alone_is_split_like_class_folders(tmp_path: Path):
    data = module(folder(tmp_path, {"train/ant": 10, "train/bee": 20}))
    assert counts(data) == {"train": [7, 14], "val": [2, 4], "test": [1, 2]}


def test_without_a_val_folder_val_comes_out_of_train(tmp_path: Path):
    data = module(folder(tmp_path, {"train/ant": 10, "train/bee": 10, "test/ant": 2, "test/bee": 2}))
    assert counts(data) == {"train": [8, 8], "val": [2, 2], "test": [2, 2]}


def test_the_split_depends_on_its_seed_alone(tmp_path: Path):
    folder(tmp_path, {"ant": 20, "bee": 20})
    first, again, other = (module(tmp_path, split_seed=seed) for seed in (0, 0, 1))
    for split in ("train", "val", "test"):
        assert names(first, split) == names(again, split)
        assert names(first, split) != names(other, split)


def test_another_val_fraction_leaves_the_test_split_as_it_was(tmp_path: Path):
    folder(tmp_path, {"ant": 20, "bee": 20})
    assert names(module(tmp_path), "test") == names(module(tmp_path, val_fraction=0.4), "test")


@pytest.mark.parametrize("fractions", [(0.0, 0.1), (0.2, 0.0), (0.5, 0.5), (0.2, -0.1)])
def test_fractions_that_leave_nothing_are_refused_before_any_data_is_read(fractions: tuple[float, float]):
    with pytest.raises(ConfigError, match=r"data\.val_fraction=.* and data\.test_fraction=.* together less than 1"):
        module(Path("/nowhere"), val_fraction=fractions[0], test_fraction=fractions[1])


def test_one_image_of_each_class_is_too_few_to_split(tmp_path: Path):
    with pytest.raises(DataError, match="2 training images are too few to split test off; add images of each"):
        module(folder(tmp_path, {"ant": 1, "bee": 1}))


def test_an_empty_class_folder_is_named(tmp_path: Path):
    folder(tmp_path, {"train/ant": 4, "val/ant": 1})
    (tmp_path / "train" / "bee").mkdir()
    with pytest.raises(
        DataError, match=r"class 'bee' of .* has no training images that can be read; put some there or remove it"
    ):
        module(tmp_path)


def test_skipped_files_are_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder(tmp_path, {"train/ant": 4, "train/bee": 4, "val/ant": 1, "test/bee": 1})
    for name in ("readme.txt", "train/ant/labels.csv", "train/ant/.DS_Store"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.INFO):
        data = module(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("ignored 3 entries: ")
    assert sorted(name for name, _ in data.ignored) == ["readme.txt", "train/ant/.DS_Store", "train/ant/labels.csv"]


# Preprocess


def test_photographs_are_evaluated_as_imagenet_nets_are(tmp_path: Path):
    data = module(folder(tmp_path, {"ant": 4, "bee": 4}, size=(90, 70)))
    own = data.preprocess
    assert (own.size, own.resize, own.crop) == (224, 256, "center")


@pytest.mark.parametrize(("size", "side"), [((32, 32), 32), ((64, 64), 64), ((64, 48), 48), ((65, 65), 224)])
def test_small_images_keep_their_size(tmp_path: Path, size: tuple[int, int], side: int):
    assert module(folder(tmp_path, {"ant": 4, "bee": 4}, size=size)).preprocess.size == side


def test_one_large_image_makes_it_a_set_of_photographs(tmp_path: Path):
    folder(tmp_path, {"train/ant": 4, "train/bee": 4, "val/ant": 1, "test/ant": 1})
    noise(tmp_path / "train" / "bee" / "large.png", (80, 60))
    data = module(tmp_path)
    assert data.preprocess.size == 224
    images, _ = data.on_after_batch_transfer(everything(evaluated_training_images(data)), 0)
    assert images.mean().abs() < 1e-4


def evaluated_training_images(data: ImageFolderDataModule) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [data.evaluation_dataset("train").__getitems__(BatchKey(0, np.arange(len(data.splits.train))))]


@pytest.mark.parametrize("size", [(20, 20), (100, 70)])
def test_mean_and_std_are_those_of_the_training_images_as_evaluated(
    tmp_path: Path, size: tuple[int, int], caplog: pytest.LogCaptureFixture
):
    data = module(folder(tmp_path, {"ant": 10, "bee": 10}, size=size))
    with caplog.at_level(logging.INFO):
        images, _ = data.on_after_batch_transfer(everything(evaluated_training_images(data)), 0)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert "mean and std from 14 training images" in caplog.text


def test_mean_and_std_come_from_512_images_at_most(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder(tmp_path, {"train/ant": 300, "train/bee": 300, "val/ant": 1, "test/ant": 1}, size=(4, 4))
    with caplog.at_level(logging.INFO):
        first, again = (module(tmp_path).preprocess for _ in range(2))
    assert first == again
    assert "mean and std from 512 training images" in caplog.text


def test_of_large_files_fewer_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = module(folder(tmp_path, {"ant": 40, "bee": 40}))
    monkeypatch.setattr("imago.data.file_datamodule.SAMPLE_BYTES", 30 * data.splits.train.num_bytes.max())
    assert len(data._sample()) == 30
    monkeypatch.setattr("imago.data.file_datamodule.SAMPLE_BYTES", 0)
    assert len(data._sample()) == 16


def test_black_images_are_not_divided_by_zero(tmp_path: Path):
    for name in ("ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png", "bee/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    data = module(tmp_path)
    assert data.preprocess.mean == (0.0, 0.0, 0.0)
    assert data.on_after_batch_transfer(everything(data.val_dataloader()), 0)[0].isfinite().all()


def test_statistics_are_not_computed_where_the_record_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = module(folder(tmp_path, {"ant": 10, "bee": 10}))
    record = module(tmp_path).preprocess
    monkeypatch.setattr(ImageFolderDataModule, "default_preprocess", None)
    data.preprocess = record
    assert next(iter(data.train_dataloader()))[0].shape == (8, 3, 12, 12)


# Batches


def test_evaluation_shows_what_resize_and_crop_gives_of_mixed_sizes(tmp_path: Path):
    folder(tmp_path, {"train/ant": 4, "train/bee": 4, "test/ant": 1})
    for index, size in enumerate([(70, 100), (300, 20), (1, 1), (257, 256)]):
        noise(tmp_path / "val" / "bee" / f"{index}.png", size)
    data = module(tmp_path)
    images, labels = everything(data.val_dataloader())
    paths = data.splits.val.paths
    expected = [resize_and_crop(read_image(path), data.preprocess).transpose(2, 0, 1) for path in paths]
    assert (images.dtype, labels.tolist()) == (torch.uint8, [1, 1, 1, 1])
    np.testing.assert_array_equal(images, np.stack(expected))


def test_training_images_keep_their_labels(tmp_path: Path):
    for index in range(20):
        for name, value in (("black", 0), ("white", 255)):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (80 + index, 70), (value,) * 3).save(tmp_path / "train" / name / f"{index}.png")
    images, labels = everything(module(tmp_path, augment=STANDARD).train_dataloader())
    assert set(labels.tolist()) == {0, 1}
    assert torch.equal(images[:, 0, 0, 0].long(), labels * 255)


@pytest.mark.parametrize("augment", [STANDARD, {"crop_padding_px": 4, "flip_probability": 0.5}], ids=str)
def test_batches_are_the_same_with_0_and_2_workers(tmp_path: Path, augment: dict):
    folder(tmp_path, {"ant": 12, "bee": 12}, size=(90, 70))
    here, elsewhere = (module(tmp_path, num_workers, augment) for num_workers in (0, 2))
    for loader in ("train_dataloader", "val_dataloader"):
        for part, other in zip(
            everything(getattr(here, loader)()), everything(getattr(elsewhere, loader)()), strict=True
        ):
            assert torch.equal(part, other)


def test_a_sample_is_augmented_alike_in_any_batch_and_anew_in_each_epoch(tmp_path: Path):
    data = module(folder(tmp_path, {"ant": 12, "bee": 12}, size=(90, 70)), augment=STANDARD)
    dataset = data.training_dataset()
    batch, _ = dataset.__getitems__(BatchKey(1, np.array([3, 5, 7])))
    alone, _ = dataset.__getitems__(BatchKey(1, np.array([5])))
    later, _ = dataset.__getitems__(BatchKey(2, np.array([5])))
    assert torch.equal(batch[1], alone[0])
    assert not torch.equal(alone, later)


def test_without_a_random_resized_crop_training_resizes_as_evaluation_does(tmp_path: Path):
    data = module(folder(tmp_path, {"ant": 12, "bee": 12}, size=(90, 70)), augment={"flip_probability": 1.0})
    key = BatchKey(0, np.arange(4))
    mirrored, _ = data.training_dataset().__getitems__(key)
    plain, _ = data.evaluation_dataset("train").__getitems__(key)
    assert torch.equal(mirrored, plain.flip(3))


def test_an_empty_batch_is_an_empty_array(tmp_path: Path):  # ranks that share out hardly any images have one
    data = module(folder(tmp_path, {"ant": 4, "bee": 4}))
    images, labels = data.evaluation_dataset("val").__getitems__(BatchKey(0, np.arange(0)))
    assert (images.shape, labels.shape) == ((0, 3, 12, 12), (0,))


def suitable(data: ImageFolderDataModule) -> int:
    return data._suitable_workers(data.training_dataset())


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (64, 16)])
def test_beside_a_gpu_every_core_decodes_but_16_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
):
    monkeypatch.setattr("imago.data.datamodule.available_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert suitable(module(folder(tmp_path, {"ant": 4, "bee": 4}), num_workers=None)) == expected


def test_on_a_cpu_the_network_has_the_cores_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suitable(module(folder(tmp_path, {"ant": 4, "bee": 4}), num_workers=None)) == 0


# Fingerprint


def test_the_fingerprint_covers_names_and_sizes_of_files(tmp_path: Path):
    kinds = {"train/ant": 3, "train/bee": 3, "val/ant": 1, "test/ant": 1}
    first = module(folder(tmp_path, kinds)).fingerprint()
    assert module(tmp_path).fingerprint() == first
    (tmp_path / "train" / "ant" / "0.png").rename(tmp_path / "train" / "ant" / "00.png")
    renamed = module(tmp_path).fingerprint()
    noise(tmp_path / "train" / "ant" / "00.png", (13, 12))
    assert len({first, renamed, module(tmp_path).fingerprint()}) == 3


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path: Path):
    folder(tmp_path / "here", {"ant": 4, "bee": 4})
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert module(tmp_path / "here").fingerprint() == module(tmp_path / "there").fingerprint()


# Damaged images


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_named_with_its_class_in_one_line(tmp_path: Path, num_workers: int):
    data = module(folder(tmp_path, {"train/ant": 4, "train/bee": 4, "val/bee": 9, "test/ant": 1}), num_workers)
    cut(tmp_path / "val" / "bee" / "8.png")
    assert data.preprocess.size == 12
    with pytest.raises(DataError) as caught:
        everything(data.val_dataloader())
    text = str(caught.value)
    assert text.startswith(f"an image of class 'bee': {tmp_path}/val/bee/8.png is damaged: ")
    assert "\n" not in text


def test_a_damaged_image_with_a_name_that_is_not_utf_8_is_named_in_printable_text(tmp_path: Path):
    folder(tmp_path, {"train/ant": 4, "train/bee": 4, "test/ant": 1})
    (tmp_path / "val" / "ant").mkdir(parents=True)
    with open(bytes(tmp_path / "val" / "ant") + b"/caf\xe9\n.png", "wb"):
        pass
    data = module(tmp_path)
    with pytest.raises(DataError, match=r"val/ant/caf\\udce9\\n\.png is empty \(0 bytes\)") as caught:
        everything(data.val_dataloader())
    str(caught.value).encode()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_meets_a_damaged_image_ends_with_one_line_and_exit_code_2(tmp_path: Path, num_workers: int):
    folder(tmp_path / "set", {"train/ant": 8, "train/bee": 8, "val/ant": 2, "val/bee": 2, "test/ant": 2})
    cut(tmp_path / "set" / "val" / "bee" / "1.png")
    settings = ["data=image_folder", f"data.root={tmp_path}/set", f"data.num_workers={num_workers}"]
    done = train(tmp_path, *settings, "data.batch_size=4", "trainer.max_epochs=1", check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: an image of class 'bee': {tmp_path}/set/val/bee/1.png is damaged")
    assert len(done.stderr.splitlines()) == 1


# All kinds of files


def write_all_kinds(root: Path) -> None:
    """One image in each mode, all of them the same: left half black, right half white, upright 40x20."""
    gray = np.zeros((20, 40), np.uint8)
    gray[:, 20:] = 255
    image = Image.fromarray(gray).convert("RGB")
    root.mkdir(parents=True)
    image.save(root / "rgb.png")
    image.convert("RGBA").save(root / "rgba.png")
    image.convert("CMYK").save(root / "cmyk.jpg", quality=95)
    image.convert("P").save(root / "palette.gif")
    image.convert("1").save(root / "bilevel.tif")
    image.convert("LA").save(root / "la.png")
    image.save(root / "Progressive.JPG", progressive=True, quality=95)
    image.save(root / "lossy é.webp", quality=95)
    Image.fromarray(gray.astype(np.uint16) * 257).save(root / "gray16.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(root / "exif.jpg", exif=exif, quality=95)


def test_every_kind_of_file_shows_the_same_image(tmp_path: Path):
    folder(tmp_path, {"train/ant": 4, "train/bee": 4, "test/ant": 1}, size=(20, 20))
    write_all_kinds(tmp_path / "val" / "ant")
    data = module(tmp_path)
    images, _ = everything(data.val_dataloader())
    assert images.shape == (10, 3, 20, 20)
    assert images[..., :7].max() < 20, "left is not black"
    assert images[..., 13:].min() > 235, "right is not white"


@pytest.mark.slow
def test_a_folder_of_all_kinds_of_files_trains(tmp_path: Path):
    for name in ("ant", "bee"):
        write_all_kinds(tmp_path / "set" / name)
        noise(tmp_path / "set" / name / "large.png", (120, 90))
        noise(tmp_path / "set" / name / "tiny.png", (1, 1))
    settings = ["data=image_folder", f"data.root={tmp_path}/set", "augment=standard", "preprocess.size=32"]
    done = train(tmp_path, *settings, "data.batch_size=4", "trainer.max_epochs=1", "run_name=kinds")
    assert "ImageFolder: 2 classes, 18 train / 4 val / 2 test" in done.stdout
    assert "random_resized_crop_scale [0.35, 1.0]" in done.stdout
    assert summary(tmp_path / "train" / "kinds")["status"] == "finished"


# Real images


@pytest.mark.needs_data
@pytest.mark.slow
def test_hymenoptera_has_its_images_and_labels(real_data: Path):
    data = module(real_data / "hymenoptera_data", augment=STANDARD)
    assert data.class_names == ("ants", "bees")
    assert len(data.splits.train) + len(data.splits.test) == 245  # one of them is no image of an ant, but an image
    assert counts(data)["val"] == [70, 83]
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((8, 3, 224, 224), torch.uint8)
    key = next(iter(data.train_dataloader().batch_sampler))
    assert labels.tolist() == [["ants", "bees"].index(data.splits.train.paths[i].parent.name) for i in key.indices]


@pytest.mark.needs_data
@pytest.mark.slow
def test_real_images_have_the_statistics_of_photographs(real_data: Path):
    own = module(real_data / "hymenoptera_data").preprocess
    assert own.mean == pytest.approx((0.52, 0.47, 0.35), abs=0.02)
    assert own.std == pytest.approx((0.27, 0.25, 0.28), abs=0.02)


# One image, one split


@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to], ids=["hard link", "link"])
def test_a_file_with_a_second_name_among_the_training_images_stays_in_test(tmp_path: Path, link):
    folder(tmp_path, {"train/ant": 6, "train/bee": 6, "val/ant": 1, "test/ant": 2, "test/bee": 2})
    link(tmp_path / "train" / "ant" / "again.png", tmp_path / "test" / "ant" / "0.png")
    data = module(tmp_path)
    assert counts(data) == {"train": [6, 6], "val": [1, 0], "test": [2, 2]}
    assert data.ignored == [("train/ant/again.png", "same file as test/ant/0.png")]


def test_other_words_for_the_splits_are_understood(tmp_path: Path):
    folder(tmp_path, {"training/ant": 6, "training/bee": 6, "testing/ant": 2, "testing/bee": 2})
    assert counts(module(tmp_path))["test"] == [2, 2]


def test_a_folder_named_as_a_split_among_classes_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        data = module(folder(tmp_path, {"ant": 10, "bee": 10, "test": 10}))
    assert data.class_names == ("ant", "bee", "test")
    assert "read as classes, not as splits, because there are other folders: test/" in caplog.text


@pytest.mark.parametrize("name", ["crop_padding_px", "cutout_px"])
def test_an_augmentation_larger_than_the_images_is_refused(tmp_path: Path, name: str):
    data = module(folder(tmp_path, {"ant": 10, "bee": 10}), augment={name: 12})
    with pytest.raises(ConfigError, match=f"augment.{name}=12 must be less than the side of the images, 12 px"):
        data.training_dataset()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"decoded_px": 0}, "data.decoded_px=0 must be 1 or more"),
        ({"cache": "rma"}, "data.cache=rma is not one of none, ram, disk, auto"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_data_is_read(settings: dict, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        module(Path("/nowhere"), **settings)


def test_a_list_that_leaves_a_class_without_training_images_is_refused(tmp_path: Path):
    data = module(folder(tmp_path / "set", {"ant": 10, "bee": 10}))
    data.write_split(tmp_path)
    lines = (tmp_path / "split.csv").read_text().splitlines()
    (tmp_path / "split.csv").write_text("\n".join(line for line in lines if not line.endswith("bee,train")) + "\n")
    with pytest.raises(DataError, match="data.split_file=.* leaves class 'bee' without training images"):
        module(tmp_path / "set", split_file=str(tmp_path / "split.csv"))
