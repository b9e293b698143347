"""Batches of the loaders, augmentation and normalization on the device, preprocessing, fingerprint, resuming."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from imago.data.datamodule import ClassNamesAndSplits, ImageDataModule
from imago.data.dataset import LabeledArray, Splits
from imago.data.sampling import TrainSampler
from imago.errors import DataError
from imago.images import Preprocess, resize_and_crop

SIZES = {"train": 44, "val": 12, "test": 10}


def samples(count: int, seed: int) -> LabeledArray:
    """Draw images whose channels differ in mean and spread, so that swapped channels are noticed."""
    noise = np.random.default_rng(seed).normal(size=(count, 3, 8, 8))
    images = noise * np.array([20, 30, 40])[:, None, None] + np.array([90, 120, 150])[:, None, None]
    names = tuple(f"{seed}/{index}" for index in range(count))
    return LabeledArray(images.clip(0, 255).astype(np.uint8), np.arange(count, dtype=np.int64) % 3, names)


class TinyDataModule(ImageDataModule):
    """Random images of three classes, 8 px."""

    num_reads = 0
    class_list = ("ant", "bee", "cat")

    def load_dataset(self) -> ClassNamesAndSplits:
        self.num_reads += 1
        return self.class_list, {split: samples(count, seed) for seed, (split, count) in enumerate(SIZES.items())}

    def default_preprocess(self) -> Preprocess:
        val = samples(SIZES["val"], 1).images / 255
        return Preprocess(
            8, 8, "center", tuple(val.mean(axis=(0, 2, 3)).tolist()), tuple(val.std(axis=(0, 2, 3)).tolist())
        )


def tiny(num_workers: int = 0, **augment: Any) -> TinyDataModule:
    data = TinyDataModule(batch_size=8, num_workers=num_workers, augment=augment, seed=0)
    data.set_up_data()
    return data


def everything(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_set_up_data_raises_again_after_an_error_and_loads_the_dataset_once():
    data = TinyDataModule(batch_size=8, num_workers=0, augment={}, seed=0)
    data.class_list = ("ant", "bee")
    for _ in range(2):
        with pytest.raises(DataError, match="train split has labels from 0 to 2"):
            data.set_up_data()
    data.class_list = TinyDataModule.class_list
    for _ in range(2):
        data.set_up_data()
    assert data.num_reads == 3


# Loaders outside a Trainer


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_loaders_return_every_image_in_order_without_augmentation(split: str):
    data = tiny(crop_padding_px=2, flip_probability=1.0)
    loader = getattr(data, f"{split}_dataloader")()
    expected = dict(data.splits.items())[split]
    for _ in range(2):
        images, labels = everything(loader)
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(labels, expected.labels)


def test_the_training_loader_returns_shuffled_images_with_their_labels():
    data = tiny()
    images, labels = everything(data.train_dataloader())
    indices = {image.tobytes(): index for index, image in enumerate(data.splits.train.images)}
    order = [indices[image.tobytes()] for image in images.numpy()]
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert len(set(order)) == 40  # 5 batches; the last, incomplete one is dropped
    assert order != sorted(order)
    np.testing.assert_array_equal(labels, data.splits.train.labels[order])


def test_the_training_loader_applies_the_augment_settings():
    plain, mirrored = (everything(data.train_dataloader())[0] for data in (tiny(), tiny(flip_probability=1.0)))
    assert torch.equal(mirrored, plain.flip(3))


# Preprocess


def test_a_batch_on_the_device_has_mean_0_and_std_1_in_each_channel():
    data = tiny()
    batch = everything(data.val_dataloader())
    images, labels = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, batch[1])


def test_batches_are_normalized_with_the_preprocess_that_was_set_last():
    data = tiny()
    batch = everything(data.val_dataloader())
    data.on_after_batch_transfer(batch, 0)
    mean, std = (0.1, 0.2, 0.3), np.array([0.5, 0.25, 0.125])  # statistics may be numpy numbers
    data.preprocess = Preprocess(8, 8, "center", mean, tuple(std))
    images, _ = data.on_after_batch_transfer(batch, 0)
    assert images.dtype == torch.float32
    for channel in range(3):
        expected = (batch[0][:, channel].float() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(images[:, channel], expected, atol=1e-5, rtol=1e-5)


def test_training_images_have_the_size_of_preprocess():
    data = tiny()
    data.preprocess = Preprocess(16, 20, "center", (0.5,) * 3, (0.25,) * 3)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 16, 16)


@pytest.mark.parametrize(("size", "resize"), [(16, 20), (4, 6), (8, 8), (8, 10)])
def test_evaluation_images_equal_those_of_resize_and_crop(size: int, resize: int):
    data = tiny()
    data.preprocess = Preprocess(size, resize, "center", (0.5,) * 3, (0.25,) * 3)
    images, _ = everything(data.test_dataloader())
    stored = data.splits.test.images.transpose(0, 2, 3, 1)
    expected = np.stack([resize_and_crop(image, data.preprocess) for image in stored])
    np.testing.assert_array_equal(images, expected.transpose(0, 3, 1, 2))


# data.train_fraction


class Unsplit(TinyDataModule):
    """The same training images without published val and test splits."""

    def load_dataset(self) -> ClassNamesAndSplits:
        class_names, splits = super().load_dataset()
        return class_names, {"train": splits["train"]}


def unsplit(only: str | None = None, **split: Any) -> Unsplit:
    data = Unsplit(batch_size=8, num_workers=0, augment={}, seed=0, val_fraction=0.2, test_fraction=0.2, **split)
    data.set_up_data(only)
    return data


@pytest.mark.parametrize("fold", [None, 1])
def test_a_share_of_train_leaves_val_and_test_and_split_csv_reproduces_it(fold: int | None, tmp_path: Path):
    whole, half = unsplit(fold=fold), unsplit(fold=fold, train_fraction=0.5)
    half.write_split(tmp_path)
    again = unsplit(split_file=str(tmp_path / "split.csv"), train_fraction=0.5)
    assert len(half.splits.train) == pytest.approx(len(whole.splits.train) / 2, abs=1.5)
    assert set(half.splits.train.names) < set(whole.splits.train.names)
    assert sorted(again.splits.train.names) == sorted(half.splits.train.names)
    for split in ("val", "test"):
        names = {getattr(data.splits, split).names for data in (whole, half, again)}
        assert len(names) == 1
    assert whole.fingerprint() != half.fingerprint() == again.fingerprint()


def test_all_images_of_other_data_are_evaluated_whatever_the_share():
    assert len(unsplit("all", train_fraction=0.1).splits.train) == SIZES["train"]


# Fingerprint


def test_the_fingerprint_changes_with_class_names_and_labels():
    assert tiny().fingerprint() == tiny().fingerprint()
    renamed, relabeled = tiny(), tiny()
    renamed.splits = Splits(("ant", "bee", "dog"), *(split for _, split in renamed.splits.items()))
    relabeled.splits.test.labels[:2] = relabeled.splits.test.labels[1::-1].copy()
    assert len({data.fingerprint() for data in (tiny(), renamed, relabeled)}) == 3


# Inside a Trainer


def trainer_that_has_done(batches: int, limit_train_batches: int | float = 1.0) -> SimpleNamespace:
    """Return a substitute for a Trainer whose progress was just restored."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=batches))
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(
        fit_loop=fit_loop,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        limit_train_batches=limit_train_batches,
        overfit_batches=0.0,
        global_rank=0,
        world_size=1,
    )


@pytest.mark.parametrize(
    ("done", "limit", "position"),
    [(0, 1.0, (0, 0)), (5, 1.0, (1, 0)), (12, 1.0, (2, 2)), (7, 3, (2, 1)), (7, 0.5, (3, 1)), (7, 99, (1, 2))],
)
def test_a_resumed_run_starts_at_the_batch_after_those_that_are_done(done: int, limit, position: tuple[int, int]):
    data = tiny()  # 5 batches in an epoch
    data.trainer = trainer_that_has_done(done, limit)
    sampler = data.train_dataloader().batch_sampler
    assert (sampler.epoch, sampler.start_batch) == position


@pytest.mark.parametrize("split", SIZES)
def test_ranks_get_different_images(split: str):
    parts = []
    for rank in range(2):
        data = tiny()
        data.trainer = trainer_that_has_done(0)
        data.trainer.global_rank, data.trainer.world_size = rank, 2
        images, _ = everything(getattr(data, f"{split}_dataloader")())
        parts.append({image.tobytes() for image in images.numpy()})
    assert parts[0].isdisjoint(parts[1])
    assert len(parts[0] | parts[1]) == {"train": 40, "val": 12, "test": 10}[split]


@pytest.mark.parametrize(("limit", "num_images"), [(1, 8), (0.5, 8), (2, 12), (1.0, 12), (9, 12)])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_limited_evaluation_draws_images_by_class_the_same_over_all_ranks(
    limit: int | float, num_images: int, num_ranks: int
):
    def first_images(seed: int = 0) -> list[list[int]]:
        """The indices of the images of the first batches, by rank, in two epochs."""
        by_rank = []
        for rank in range(num_ranks):
            data = TinyDataModule(4 * 2 // num_ranks, num_workers=0, augment={}, seed=0, split_seed=seed)
            data.set_up_data()
            by_class = np.argsort(data.splits.val.labels, kind="stable")
            data.splits = Splits(data.class_names, data.splits.train, data.splits.val.take(by_class), data.splits.test)
            data.trainer = trainer_that_has_done(0)
            data.trainer.limit_val_batches, data.trainer.global_rank, data.trainer.world_size = limit, rank, num_ranks
            known = {image.tobytes(): index for index, image in enumerate(data.splits.val.images)}
            loader = data.val_dataloader()
            count = min(limit, len(loader)) if isinstance(limit, int) else int(limit * len(loader))
            epochs = [[known[i.tobytes()] for b, _ in [*loader][:count] for i in b.numpy()] for _ in range(2)]
            assert epochs[0] == epochs[1]
            by_rank.append(epochs[0])
        return by_rank

    drawn = first_images()
    shown = sorted(index for indices in drawn for index in indices)
    assert len(set(shown)) == len(shown) == num_images
    assert np.ptp(np.bincount(np.array(shown) // 4, minlength=3)) <= 1  # 4 images of each of 3 classes, sorted
    if num_images == 12:
        assert drawn == [list(range(rank, 12, num_ranks)) for rank in range(num_ranks)]
    else:
        assert first_images(seed=1) != drawn


ON_DEVICE = ({"brightness": 0.9}, {"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}, {"erase_probability": 1.0})


def on_device(data: TinyDataModule, epoch: int, done: int, rank: int, training: bool = True):
    """Return the same batch after the transfer, at this position of a training run."""
    data.trainer = trainer_that_has_done(done)
    data.trainer.current_epoch, data.trainer.global_rank, data.trainer.world_size = epoch, rank, 2
    data.trainer.training = training
    part = data.splits.train
    return data.on_after_batch_transfer((torch.from_numpy(part.images[:8]), torch.from_numpy(part.labels[:8])), 0)


@pytest.mark.parametrize("augment", ON_DEVICE, ids=str)
def test_augmentation_on_the_device_depends_on_the_position_of_the_batch_alone(augment: dict[str, float]):
    first, other = tiny(**augment), tiny(**augment)
    positions = [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 0, 1), (0, 1, 1), (1, 5, 0), (1, 5, 1)]  # 5 batches in an epoch
    drawn = {position: on_device(first, *position) for position in positions}
    assert len({images.numpy().tobytes() for images, _ in drawn.values()}) == len(positions)
    for position in reversed(positions):
        images, labels = on_device(other, *position)
        assert torch.equal(images, drawn[position][0])
        assert torch.equal(labels, drawn[position][1])


@pytest.mark.parametrize("augment", ON_DEVICE, ids=str)
def test_validation_during_training_is_not_augmented_on_the_device(augment: dict[str, float]):
    images, labels = on_device(tiny(**augment), 0, 1, 0, training=False)
    plain, hard = on_device(tiny(), 0, 1, 0, training=False)
    assert torch.equal(images, plain)
    assert torch.equal(labels, hard)


def noisy(image: torch.Tensor) -> torch.Tensor:
    """Add a number from each of the three generators."""
    return image + torch.randint(20, image.shape) + np.random.randint(20) + random.randrange(20)


def mixed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    share = torch.rand(()) * np.random.random() * random.random()
    return torch.lerp(images, images.flip(0), share), torch.nn.functional.one_hot(labels, 3) * (1 - share)


OWN = {"flip_probability": 0.5, "extra": [lambda image: noisy(image).to(torch.uint8)], "extra_batch": [mixed]}


@pytest.mark.parametrize(("num_workers", "done"), [(0, 0), (2, 0), (0, 3), (2, 3), (2, 7)])
def test_own_transforms_do_not_depend_on_workers_or_interruptions(num_workers: int, done: int):
    def rest(num_workers: int, done: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        data = tiny(num_workers=num_workers, **OWN)
        data.trainer = trainer_that_has_done(done)
        data.trainer.training, data.trainer.current_epoch, batches = True, done // 5, []
        for batch in data.train_dataloader():  # the rest of the epoch
            batches.append(data.on_after_batch_transfer(batch, 0))
            data.trainer.fit_loop.epoch_loop.batch_progress.total.processed += 1
        return batches

    random.seed(num_workers)
    expected = rest(0, done - done % 5)[done % 5 :]
    assert expected[0][1].shape == (8, 3)
    for one, other in zip(rest(num_workers, done), expected, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_an_error_of_an_own_transform_in_a_worker_is_one_line():
    data = tiny(num_workers=1, extra=[lambda image: image[:1]])
    with pytest.raises(DataError, match="^augment.extra: .*<lambda> returned Tensor uint8"):
        next(iter(data.train_dataloader()))


class Recorder(BoringModel):
    """Record the pixel sum of every training batch."""

    def training_step(self, batch, batch_idx):
        self.sums.append(batch[0].double().sum().item())
        return self.layer.weight.sum()


@pytest.mark.filterwarnings("ignore:.*validation_step.*", "ignore:.*treespec, LeafSpec.*")
def test_a_trainer_gets_the_batches_of_each_epoch_in_the_order_of_the_sampler(tmp_path):
    data, recorder = tiny(num_workers=2), Recorder()
    recorder.sums = []
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    settings = {"max_epochs": 3, "limit_val_batches": 0, "default_root_dir": tmp_path, **dict.fromkeys(off, False)}
    Trainer(accelerator="cpu", **settings).fit(recorder, datamodule=data)
    sampler = TrainSampler(SIZES["train"], 8, seed=0)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = (torch.from_numpy(data.splits.train.images[key.indices]) for key in sampler)
        normalized = (data.on_after_batch_transfer((images, None), 0)[0] for images in batches)
        expected += [images.double().sum().item() for images in normalized]
    assert recorder.sums == pytest.approx(expected, abs=0.01)


def test_memory_is_pinned_for_a_trainer_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch):
    """Pinning starts CUDA on the first GPU, which a command for the CPU must not touch."""
    pinned: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("imago.data.datamodule.BatchLoader", lambda *args, pin_memory: pinned.append(pin_memory))
    data = tiny()
    data.evaluation_loader("val")
    for device in ("cuda", "cpu"):
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), num_devices=1)
        data._build_loader(data.dataset("val"), None)
    assert pinned == [False, True, False]
