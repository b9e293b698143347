"""Images kept on the device: the same batches, weights and resumed runs as those of the CPU, and where they fit."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from short_runs import SHORT, train
from small_fit import QUIET, EachStep, SmallShapes, build_whole_run, fit_run
from torch import Tensor
from torch.utils.data import Dataset

from imago.data.dataset import ArrayDataset, LabeledArray
from imago.data.device_images import BatchChoices, ChoiceDataset, DeviceImages
from imago.data.file_datamodule import ImageFolderDataModule
from imago.data.sampling import BatchIndices
from imago.data.torch_dataset import TorchDatasetDataModule
from imago.errors import ConfigError

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FLIPS = {"flip_probability": 0.5, "vertical_flip_probability": 0.5}
AUGMENTS = (
    {},
    {"crop_padding_px": 4, "crop_padding_mode": "reflect"},
    FLIPS,
    {"crop_padding_px": 3, "contrast": 0.5, "mixup_alpha": 0.4} | FLIPS,
)
MIB = 2**20


def shapes(on_device: bool | str, done: int = 0, rank: int = 0, num_ranks: int = 1, **settings: Any) -> SmallShapes:
    """Return a data module in a Trainer that has done this number of batches: 20 in an epoch."""
    data = SmallShapes(16, on_device=on_device, **({"num_workers": 0, "augment": {}, "seed": 3} | settings))
    data.set_up_data()
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=done)))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        fit_loop=SimpleNamespace(epoch_loop=progress),
        strategy=SimpleNamespace(root_device=CPU),
        **{"training": True, "current_epoch": done // 20, "global_rank": rank, "world_size": num_ranks},
        **dict.fromkeys(("limit_train_batches", "limit_val_batches"), 1.0),
    )
    data.setup("fit")
    return data


def training_batches(data: SmallShapes) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rest of an epoch as the network gets it."""
    for batch in data.train_dataloader():
        assert isinstance(batch, BatchChoices) == (data.device_splits.setting is True)
        yield data.on_after_batch_transfer(batch, 0)
        data.trainer.fit_loop.epoch_loop.batch_progress.total.processed += 1


def assert_equal(ours: Iterator, theirs: Iterator) -> int:
    """Compare batches bit for bit, and return their number."""
    pairs = list(zip(ours, theirs, strict=True))
    for one, other in pairs:
        assert torch.equal(one[0], other[0])
        assert one[0].stride() == other[0].stride()
        assert torch.equal(one[1], other[1])
    return len(pairs)


# The same batches


@pytest.mark.parametrize("augment", AUGMENTS, ids=str)
@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_the_batches_of_a_training_equal_those_of_the_cpu_bit_for_bit(augment: dict, sampler: str):
    ours, theirs = (
        training_batches(shapes(on_device, 20, augment=augment, sampler=sampler)) for on_device in (True, False)
    )
    assert assert_equal(ours, theirs) == 20


@pytest.mark.parametrize(("num_workers", "done"), [(2, 0), (2, 27), (0, 27)])
def test_they_depend_neither_on_workers_nor_on_interruptions(num_workers: int, done: int):
    augment = AUGMENTS[-1]
    ours = training_batches(shapes(True, done, num_workers=num_workers, augment=augment))
    whole = list(training_batches(shapes(False, done - done % 20, augment=augment)))
    assert assert_equal(ours, iter(whole[done % 20 :])) == 20 - done % 20


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_gets_its_own_images(rank: int):
    ours, theirs = (training_batches(shapes(on, 0, rank, 2, augment=AUGMENTS[-1])) for on in (True, False))
    assert assert_equal(ours, theirs) == 20


@pytest.mark.parametrize("limit", [1.0, 2])
def test_validation_batches_are_not_augmented_and_limited_ones_are_drawn_by_class(limit: float):
    parts = []
    for on_device in (True, False):
        data = shapes(on_device, augment=AUGMENTS[-1])
        data.trainer.training, data.trainer.limit_val_batches = False, limit
        parts.append([data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()])
    assert assert_equal(*map(iter, parts)) == 7
    if limit == 1.0:
        assert torch.equal(torch.cat([labels for _, labels in parts[0]]), torch.arange(100) % 10)


def test_loaders_outside_of_a_training_return_images():
    data = shapes(True)
    for split in ("val", "test"):
        images, _ = next(iter(data.evaluation_loader(split)))
        np.testing.assert_array_equal(images, getattr(data.splits, split).images[:16])


def test_gathered_pixels_are_those_of_a_padded_cropped_and_flipped_image():
    images = np.random.default_rng(0).integers(1, 256, (5, 3, 6, 8), dtype=np.uint8)
    padded = ArrayDataset(LabeledArray(np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2))), np.arange(5), ("",) * 5))
    padded.augment = SimpleNamespace(crop_padding_px=2)
    values = torch.tensor([[4, 0, 4], [0, 4, 3], [1, 2, 4], [0, 1, 1], [0, 0, 1]])
    gathered, labels = DeviceImages(padded, CPU).gather(values)
    for got, (index, top, left, flip, vertical_flip) in zip(gathered, values.T.tolist(), strict=True):
        expected = np.pad(images[index], ((0, 0), (2, 2), (2, 2)))[:, top : top + 6, left : left + 8]
        expected = expected[:, :, ::-1] if flip else expected
        np.testing.assert_array_equal(got, expected[:, ::-1] if vertical_flip else expected)
    assert labels.tolist() == [4, 0, 4]


def test_workers_get_no_images():
    data = shapes(True)
    dataset = data.train_dataloader().dataset
    assert isinstance(dataset, ChoiceDataset)
    assert max(value.nbytes for value in vars(dataset).values() if hasattr(value, "nbytes")) == 320 * 8
    assert dataset.load(BatchIndices(0, np.arange(4))).values.nbytes == 5 * 4 * 8


# The same runs

RUN = (
    *("data=shapes", "data.batch_size=32", "model.hidden_features=16", "model.dropout=0.2", "trainer.max_epochs=2"),
    *("augment.crop_padding_px=4", "augment.flip_probability=0.5", "augment.cutmix_alpha=1.0"),
    *("callbacks.last_checkpoint.every_minutes=0.0", "callbacks.image_grid=null", "logger.tensorboard=null"),
)


def weights(run_dir: Path) -> dict[str, Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_training_and_one_resumed_in_mid_epoch_end_with_the_weights_of_the_cpu_path(
    compose: Callable, tmp_path: Path
):
    for on_device in (True, False):
        fit_run(compose(*RUN, f"data.on_device={on_device}"), tmp_path / str(on_device))

    def interrupt(trainer: Any) -> None:
        if trainer.global_step == 14:  # of 20
            raise ZeroDivisionError

    cfg = compose(*RUN, "data.on_device=true")
    with pytest.raises(ZeroDivisionError):
        fit_run(cfg, tmp_path / "broken", EachStep(interrupt))
    fit_run(cfg, tmp_path / "broken")
    expected = weights(tmp_path / "False")
    for name in ("True", "broken"):
        found = weights(tmp_path / name)
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.slow
def test_two_processes_train_as_they_do_with_images_on_the_cpu(tmp_path: Path):
    curves = []
    for on_device in ("true", "false"):
        two = ("trainer=ddp_sim", "trainer.max_epochs=1", "model.hidden_features=8", "test=false")
        two += ("callbacks.best_checkpoint=null", "callbacks.image_grid=null")
        done = train(tmp_path, *SHORT, *two, f"data.on_device={on_device}", f"run_name={on_device}", "threads=1")
        rows = csv.DictReader((tmp_path / "train" / on_device / "metrics.csv").open(encoding="utf-8"))
        curves.append([(row["step"], row["train/loss_step"], row["val/loss"]) for row in rows])
        kept = "made on cpu, where 26 MiB of images are kept" in done.stdout
        assert kept == (on_device == "true")
    assert curves[0] == curves[1]
    assert any(loss for _, loss, _ in curves[0])


# Where they fit


def place(data: Any, device: torch.device) -> str:
    data.place_images(device)
    return data.device_splits.reason


@pytest.mark.parametrize(("free_mib", "is_chosen"), [(7.1, True), (7.0, False)])
def test_auto_uses_a_gpu_if_a_quarter_of_its_free_memory_is_enough(monkeypatch, free_mib: float, is_chosen: bool):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free_mib * MIB), 80 * MIB))
    data = SmallShapes(16, num_workers=0, augment={"crop_padding_px": 4}, seed=0, on_device="auto")
    data.set_up_data()
    # 320 x 3 x 40^2 + 100 x 3 x 32^2 bytes are 1.46 + 0.29 = 1.758 MiB, a quarter of 7.03.
    chosen = "on cuda:0, where 2 MiB of images are kept"
    assert place(data, CUDA) == (
        chosen if is_chosen else "on the CPU: 2 MiB of images, more than 25% of the 7 MiB free there"
    )


def test_auto_leaves_the_images_where_a_network_on_the_cpu_reads_them(compose: Callable, tmp_path: Path):
    data, *_ = build_whole_run(compose("data=shapes", "model.hidden_features=8"), tmp_path)
    assert data.device_splits.reason == "on the CPU: the network runs on the CPU"


def test_images_that_do_not_fit_at_all_are_refused_if_they_have_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (MIB, 80 * MIB))
    data = shapes(True)
    with pytest.raises(
        ConfigError, match=r"^data.on_device=true: 1 MiB of images, more than the 1 MiB free there; type"
    ):
        data.place_images(CUDA)


@pytest.mark.parametrize(
    "augment",
    [
        {"policy": "randaugment"},
        {"rotation_degrees": 5},
        {"random_resized_crop_scale": [0.5, 1.0]},
        {"extra": [lambda image: image]},
    ],
)
def test_transforms_of_single_images_stay_on_the_cpu(augment: dict):
    (name,) = augment
    reason = f"augment.{name} transforms single images, on the CPU"
    with pytest.raises(ConfigError, match=rf"^data.on_device=true: {reason}; type data.on_device=auto\.$"):
        shapes(True, augment=augment)
    data = shapes("auto", augment=augment)
    assert place(data, CUDA) == f"on the CPU: {reason}"
    assert next(iter(data.train_dataloader()))[0].shape == (16, 3, 32, 32)


class Pairs(Dataset):
    """Images of one size, of somebody else."""

    classes = ("ant", "bee")

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8, 8), index, dtype=torch.uint8), index % 2


@pytest.mark.parametrize("kind", ["files", "another dataset"])
def test_what_is_read_one_by_one_stays_on_the_cpu(kind: str, tmp_path: Path):
    def build(on_device: bool | str) -> Any:
        common = {"batch_size": 8, "num_workers": 0, "augment": {}, "seed": 0, "on_device": on_device}
        common |= {"val_fraction": 0.2, "test_fraction": 0.2}
        if kind == "files":
            from PIL import Image

            for label in Pairs.classes:
                (tmp_path / label).mkdir(exist_ok=True)
                for index in range(10):
                    Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / label / f"{index}.png")
            data: Any = ImageFolderDataModule(str(tmp_path), str(tmp_path / "cache"), **common)
        else:
            data = TorchDatasetDataModule(Pairs(), **common)
        data.set_up_data()
        return data

    with pytest.raises(ConfigError, match=r"^data.on_device=true: the images are read one by one; .*on_device=auto\.$"):
        build(True).place_images(CPU)
    data = build("auto")
    assert place(data, CUDA).startswith("on the CPU: the images are read one by one")
    assert next(iter(data.train_dataloader()))[0].dtype == torch.uint8


def test_a_dataset_class_of_ones_own_is_refused_instead_of_being_bypassed():
    class Own(ArrayDataset):
        pass

    data = shapes(True)
    with pytest.raises(ConfigError, match=r"^data.on_device=true cannot make the batches of Own; type data.on_device"):
        data.device_splits.move("train", Own(data.splits.train))


def test_another_value_is_refused():
    with pytest.raises(ConfigError, match=r"^data.on_device=gpu is not one of auto, true, false\.$"):
        SmallShapes(16, num_workers=0, augment={}, seed=0, on_device="gpu")
