"""The grid of training images, once, in TensorBoard and as a file; and the curves of a run."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from imago.callbacks.image_grid import ImageGrid

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


class Board(TensorBoardLogger):
    """Record the images instead of writing a file."""

    def __init__(self) -> None:
        self.added: list[tuple[str, torch.Tensor, int]] = []

    @property
    def experiment(self):
        return SimpleNamespace(add_image=lambda *image: self.added.append(image))


def start_batches(
    folder: Path, num_batches: int, loggers: list, is_global_zero: bool = True, num_images: int = 4
) -> None:
    data, module = SimpleNamespace(preprocess=SimpleNamespace(mean=MEAN, std=STD)), SimpleNamespace()
    trainer = SimpleNamespace(loggers=loggers, is_global_zero=is_global_zero, global_step=7, datamodule=data)
    grid = ImageGrid(str(folder))
    for batch_idx in range(num_batches):
        batch = (torch.zeros(num_images, 3, 6, 5), torch.zeros(num_images))
        grid.on_train_batch_start(trainer, module, batch, batch_idx)


def test_the_first_32_images_are_written_once(tmp_path: Path):
    board = Board()
    start_batches(tmp_path, 3, [board], num_images=100)
    [(tag, grid, step)] = board.added
    assert (tag, step, grid.shape) == ("train/images", 7, (3, 4 * 8 + 2, 8 * 7 + 2))


def test_other_ranks_write_nothing(tmp_path: Path):
    board = Board()
    start_batches(tmp_path, 1, [board], is_global_zero=False)
    assert board.added == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_tensorboard_logger_there_is_still_the_file(tmp_path: Path):
    start_batches(tmp_path / "figures", 1, [object()])
    grid = np.asarray(Image.open(tmp_path / "figures" / "train_images.png"))
    assert grid.shape == (6 + 4, 4 * 7 + 2, 3)
    assert grid[2, 2].tolist() == [round(255 * level) for level in MEAN]  # zeros, normalized, are the mean


@pytest.fixture(scope="module")
def events(finished_run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(finished_run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.slow
def test_tensorboard_of_a_run_holds_one_grid_of_its_images(events):
    written = events.Images("train/images")
    assert len(written) == 1
    grid = np.asarray(Image.open(io.BytesIO(written[0].encoded_image_string)))
    assert grid.shape == (4 * 34 + 2, 8 * 34 + 2, 3)
    # Normalized pixels, shown as they are, would have lost every color below the mean.
    assert len(np.unique(grid[2:34, 2:34])) > 50


@pytest.mark.slow
def test_tensorboard_of_a_run_has_the_curves_people_look_for(events):
    wanted = {"train/loss", "train/acc", "val/loss", "val/acc", "test/acc", "train/loss_step", "lr"}
    wanted |= {"images_per_s", "data_wait_share", "grad_norm", "peak_memory_gib"}
    assert wanted <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_curves_have_the_same_names_in_tensorboard_and_in_the_table(events, finished_run: Path):
    header = (finished_run / "metrics.csv").read_text().partition("\n")[0].split(",")
    # What the tab HPARAMS shows: the values of the best epoch, while val/acc ends with the last epoch's.
    of_settings = {"best/val_acc", "best/val_loss", "best/val_f1"}
    assert set(events.Tags()["scalars"]) - of_settings == set(header) - {"step"}
