"""Any torch Dataset: labels and class names, images of any kind and size, refusals, seeded reads, fingerprint."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_images import photo
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.datasets import FakeData, ImageFolder

from imago.data.dataset import concatenate
from imago.data.sampling import BatchIndices
from imago.data.torch_dataset import LabeledDataset, TorchDatasetDataModule
from imago.dataset_check.check import examine_dataset
from imago.errors import ConfigError, DataError
from imago.images import Preprocess, resize_and_crop
from imago.inference.run_split import images_in_memory, split_samples


class Photos(Dataset):
    """PIL images of different sizes; the label is the index modulo 3."""

    num_reads = 0

    def __init__(self, num_images: int = 60, change: Callable[[Any], Any] | None = None) -> None:
        self.num_images = num_images
        self.change = change or (lambda sample: sample)

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Any:
        self.num_reads += 1
        return self.change((Image.fromarray(photo(index, 20 + index % 7)), index % 3))


class ManyLabels(Photos):
    def __init__(self, name: str, values: Any) -> None:
        super().__init__(len(values))
        setattr(self, name, values)


def module(train: Any, **settings: Any) -> TorchDatasetDataModule:
    defaults = {"batch_size": 8, "num_workers": 0, "augment": {}, "seed": 0, "test_fraction": 0.2, "val_fraction": 0.2}
    data = TorchDatasetDataModule(train, **(defaults | settings))
    data.set_up_data()
    return data


def changed(function: Callable[[Any], Any]) -> Photos:
    return Photos(change=lambda sample: (function(sample[0]), sample[1]))


def photo_file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# Labels, class names and splits


def test_a_dataset_without_targets_is_read_once_for_its_labels_and_numbers_name_its_classes():
    source = Photos()
    data = module(source)
    assert source.num_reads == 60
    assert data.class_names == ("0", "1", "2")
    assert data.random_splits == ["test", "val"]
    images = concatenate([split for _, split in data.splits.items()])
    assert sorted(images.names) == [f"train/{index:05d}" for index in range(60)]
    assert [int(name[-5:]) % 3 for name in images.names] == images.labels.tolist()
    index = int(data.splits.val.names[4][-5:])
    np.testing.assert_array_equal(data.splits.val.read(4), photo(index, 20 + index % 7))


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda values: [torch.tensor(v) for v in values]])
def test_labels_are_taken_from_an_attribute_without_reading(name: str, kind: Callable):
    source = ManyLabels(name, kind([0, 1, 2] * 20))
    assert np.bincount(module(source).splits.train.labels).tolist() == [12, 12, 12]
    assert source.num_reads == 0


@pytest.mark.parametrize("values", [[[0], [1, 2]] * 30, ["a", "b"] * 30, [0.0, 1.0] * 30, [[0, 1]] * 60])
def test_targets_that_are_no_labels_are_not_used(values: list):
    assert module(ManyLabels("targets", values)).class_names == ("0", "1", "2")


def test_a_subset_and_a_concatenation_are_read_for_their_labels():
    parts = ConcatDataset([Subset(Photos(), range(0, 60, 2)), Subset(ManyLabels("targets", [0, 1, 2] * 20), range(30))])
    data = module(parts)
    assert sum(len(split) for _, split in data.splits.items()) == 60
    images = concatenate([split for _, split in data.splits.items()])
    assert images.labels[np.argsort(images.names)].tolist() == [i % 3 for i in [*range(0, 60, 2), *range(30)]]


def test_published_splits_are_kept_and_folds_join_train_and_val():
    data = module(Photos(30), val=Photos(12), test=Photos(9), fold=1, num_folds=3)
    assert [len(split) for _, split in data.splits.items()] == [28, 14, 9]
    assert {name[:-5] for name in data.splits.val.names} == {"train/", "val/"}
    index = next(i for i, name in enumerate(data.splits.val.names) if name == "val/00004" or name == "val/00005")
    number = int(data.splits.val.names[index][-5:])
    np.testing.assert_array_equal(data.splits.val.read(index), photo(number, 20 + number % 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"image": s[0]}, "sample 0 is dict, wanted"),
        (lambda s: (*s, 1), r"sample 0 is a tuple of 3 \(Image, int 0, int 1\), wanted"),
        (lambda s: (torch.rand(3, 8, 8), 1), r"float32 \(3, 8, 8\), int 1\), wanted .* without ToTensor"),
        (lambda s: (torch.zeros(4, 8, 8, dtype=torch.uint8), 1), r"uint8 \(4, 8, 8\)"),
        (lambda s: (np.array(s[0]), 1), r"ndarray uint8 \(20, 20, 3\)"),
        (lambda s: (torch.zeros(3, 0, 8, dtype=torch.uint8), 1), r"uint8 \(3, 0, 8\)"),
        (lambda s: (s[0], 1.0), "float 1.0"),
        (lambda s: (s[0], -1), "int -1"),
        (lambda s: (s[0], "bee"), "str 'bee'"),
        (lambda s: (s[0], torch.tensor([0, 1])), r"int64 \(2,\)"),
        (lambda s: (s[0].convert("F"), 1), "sample 0 holds floating-point"),
    ],
)
def test_a_sample_that_is_no_image_with_a_label_is_one_line(change: Callable, message: str):
    with pytest.raises(DataError, match=f"^data.train, Photos: .*{message}") as caught:
        module(Photos(change=change))
    assert "\n" not in str(caught.value)


def test_other_errors_name_the_setting(tmp_path: Path):
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(())

    def unreadable(sample: Any) -> Any:
        raise OSError("cannot identify image file 'a.jpg'")

    (tmp_path / "cut.png").write_bytes(photo_file(Image.fromarray(photo(0, 64)))[:2000])
    wrong = ManyLabels("targets", [1] * 30 + [0] * 30)
    named, other = Photos(), Photos()
    named.classes, other.classes = ["a", "b", "c"], ["a", "c", "b"]
    for train, val, message in (
        (Stream(), None, "data.train is a Stream; wanted a torch.utils.data.Dataset"),
        (Photos(change=unreadable), None, "data.train, Photos: sample 0 cannot be read: cannot identify image file"),
        (changed(lambda _: Image.open(tmp_path / "cut.png")), None, "sample 0 cannot be read: .*truncated"),
        (named, other, "have the classes .* and .*; make them equal"),
        ({"_target_": "imago.data.file_datamodule.Nothing"}, None, "there is no 'Nothing'"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            module(train, val=val)
    with pytest.raises(DataError, match="sample .* is .*, but . in its targets or labels; a target_transform"):
        list(module(wrong).train_dataloader())


def test_class_names_are_those_of_the_dataset_and_must_differ():
    source = Photos()
    source.classes = [("ant", "Formica"), ("bee",), ("cat",)]
    assert module(source).class_names == ("ant", "bee", "cat")
    source.classes = np.array(["ant", "bee", "cat"])
    assert module(source).class_names == ("ant", "bee", "cat")
    source.classes = ["ant", "ant", "cat"]
    with pytest.raises(DataError, match="the classes 'ant' and 'ant' look the same"):
        module(source)


# Images


@pytest.mark.parametrize(
    "convert", [lambda image: image, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)]
)
def test_images_of_every_kind_are_the_same_pixels(convert: Callable):
    data = module(changed(convert))
    data.preprocess = Preprocess(16, 18, "center", (0.5,) * 3, (0.5,) * 3)
    images, labels = next(iter(data.evaluation_loader("val")))
    numbers = [int(name[-5:]) for name in data.splits.val.names[:8]]
    expected = [resize_and_crop(photo(number, 20 + number % 7), data.preprocess) for number in numbers]
    np.testing.assert_array_equal(images, np.stack(expected).transpose(0, 3, 1, 2))
    assert labels.tolist() == [number % 3 for number in numbers]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "HSV"])
def test_pil_images_of_any_mode_become_rgb(mode: str):
    def convert(image: Image.Image) -> Image.Image:
        gray = image.convert("L")
        return Image.fromarray(np.asarray(gray, np.uint16) * 257) if mode == "I;16" else gray.convert(mode)

    data = module(changed(convert))
    index = int(data.splits.train.names[0][-5:])
    gray = Image.fromarray(photo(index, 20 + index % 7)).convert("L")
    expected = np.asarray(gray.convert("1"), np.uint8) * 255 if mode == "1" else np.asarray(gray)
    np.testing.assert_array_equal(data.splits.train.read(0), np.repeat(expected[..., None], 3, axis=2))


def test_gray_tensors_become_three_equal_channels():
    data = module(changed(lambda image: torch.from_numpy(np.array(image.convert("L")))[None]))
    index = int(data.splits.train.names[0][-5:])
    gray = np.asarray(Image.fromarray(photo(index, 20 + index % 7)).convert("L"))
    np.testing.assert_array_equal(data.splits.train.read(0), np.repeat(gray[..., None], 3, axis=2))


def test_the_default_size_is_chosen_by_the_images():
    assert module(Photos()).preprocess.size == 26  # the largest shorter side
    assert module(FakeData(30, (3, 100, 90), 3)).preprocess.size == 224


def test_a_random_crop_is_taken_from_the_original_image():
    side = 300
    source = Photos(12, lambda sample: (Image.fromarray(np.full((side, side, 3), 9, np.uint8)), sample[1]))
    data = module(source, augment={"random_resized_crop_scale": [0.5, 1.0]})
    data.preprocess = Preprocess(8, 8, "center", (0.5,) * 3, (0.5,) * 3)
    assert next(data.training_dataset().read_images(BatchIndices(0, np.arange(2)))).shape == (side, side, 3)
    assert next(iter(data.train_dataloader()))[0].shape[1:] == (3, 8, 8)


# Random transforms in the Dataset itself


def jitter(sample: Any) -> Any:
    shift = random.randrange(60) + np.random.randint(60) + int(torch.randint(60, ()))
    return Image.fromarray(np.array(sample[0].resize((16, 16))) // 2 + np.uint8(shift % 100)), sample[1]


@pytest.mark.slow
def test_random_transforms_of_a_dataset_depend_on_seed_epoch_and_index_only():
    def second_epoch(num_workers: int, seed: int = 0, epoch: int = 1) -> list[torch.Tensor]:
        data = module(Photos(change=jitter), num_workers=num_workers, seed=seed, augment={"flip_probability": 0.5})
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        return [images for images, _ in loader]

    random.seed(1)
    one, state = second_epoch(0), random.getstate()
    random.seed(2)
    for num_workers in (0, 2):
        other = second_epoch(num_workers)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    random.seed(1)
    second_epoch(0)
    assert random.getstate() == state
    assert not torch.equal(one[0], second_epoch(0, seed=5)[0])
    data = module(Photos(change=jitter), augment={})
    first, second = (data.training_dataset().__getitems__(BatchIndices(epoch, np.arange(8)))[0] for epoch in (0, 1))
    assert not torch.equal(first, second)
    evaluated = [torch.cat([images for images, _ in data.evaluation_loader("val")]) for _ in range(2)]
    assert torch.equal(*evaluated)


# What the commands need


@pytest.mark.slow
def test_the_fingerprint_changes_with_labels_and_pixels_and_reads_at_most_1000_images():
    source = ManyLabels("targets", [index % 3 for index in range(1500)])
    fingerprint = module(source).fingerprint()
    assert source.num_reads == 1000
    assert fingerprint == module(ManyLabels("targets", [index % 3 for index in range(1500)]), seed=4).fingerprint()
    small = {module(train).fingerprint() for train in (Photos(), Photos(), changed(lambda image: image.rotate(90)))}
    assert len(small) == 2
    assert len({module(Photos(change=jitter)).fingerprint() for _ in range(2)}) == 1


def test_a_check_examines_every_image_and_mistakes_are_shown_at_one_size(tmp_path: Path):
    data = module(Photos(30))
    checked = examine_dataset(data, tmp_path)
    assert (len(checked), len(checked.bad_indices), checked.formats()) == (30, 0, {"in memory": 30})
    images = images_in_memory(split_samples(data, "all"), [0, 29])
    assert {image.shape for image in images.values()} == {(128, 128, 3)}


def test_torchvision_datasets_are_built_from_a_node(real_data: Path):
    root = str(real_data / "hymenoptera_data" / "train")
    data = module({"_target_": "torchvision.datasets.ImageFolder", "root": root})
    source = ImageFolder(root)
    images = split_samples(data, "all")
    assert isinstance(images, LabeledDataset)
    assert data.class_names == tuple(source.classes)
    assert np.bincount(images.labels).tolist() == np.bincount(source.targets).tolist()
    with pytest.raises(DataError, match=r"^data.train: .*No such file.*; correct the arguments data.train.NAME=VALUE"):
        module({"_target_": "torchvision.datasets.ImageFolder", "root": "/nowhere"})
