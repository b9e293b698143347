"""The size in each epoch, with a real Trainer, and the full size in evaluation."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from imago.callbacks.progressive_size import ProgressiveSize
from imago.errors import ConfigError


class Watched(nn.Module):
    """Record the size of the images, and whether it was in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.seen: list[tuple[bool, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.training, images.shape[-1]))
        return self.head(images.mean(dim=(2, 3)))


class Task(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Watched()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, callback: ProgressiveSize, max_epochs: int, images: Tensor, ckpt: Path | None = None) -> Task:
    task, batches = Task(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=2)
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, batches, batches, ckpt_path=ckpt)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return task


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*exists and is not empty.*",
    "ignore:.*smaller than the logging interval.*",
)


@pytest.mark.parametrize(
    ("sizes_px", "num_epochs", "expected"),
    [
        ([20, 32], 4, [20, 20, 32, 32]),
        ([20, 32], 3, [20, 20, 32]),
        ([20, 24, 32], 2, [20, 24]),
        ([20, 24, 28, 32], 10, [20, 20, 20, 24, 24, 28, 28, 28, 32, 32]),
        ([32], 2, [32, 32]),
    ],
)
def test_each_size_has_an_equal_share_of_the_epochs(sizes_px: list[int], num_epochs: int, expected: list[int]):
    callback = ProgressiveSize(sizes_px)
    assert [callback.size_at(epoch, num_epochs) for epoch in range(num_epochs)] == expected


def test_training_grows_and_validation_and_the_network_after_the_run_have_the_full_size(tmp_path: Path):
    net = fit(tmp_path, ProgressiveSize([4, 8, 16]), 3, torch.randn(2, 3, 8, 8)).net  # images are never made larger
    assert net.seen == [(True, 4), (False, 8), (True, 8), (False, 8), (True, 8), (False, 8)]
    net.train()(torch.zeros(1, 3, 6, 6))
    assert net.seen[-1] == (True, 6)


def test_a_resumed_run_goes_on_at_its_size(tmp_path: Path):
    images = torch.randn(2, 3, 8, 8)
    fit(tmp_path, ProgressiveSize([4, 6, 8]), 3, images)
    resumed = fit(tmp_path, ProgressiveSize([4, 6, 8]), 4, images, tmp_path / "last.ckpt")
    assert resumed.net.seen[0] == (True, 8)


def shrink(images: Tensor, size_px: int) -> Tensor:
    callback, net = ProgressiveSize([size_px]), nn.Identity()
    (images,) = callback._shrink(net, (images,))
    return images


def test_a_smaller_image_is_the_mean_of_what_it_covers():
    columns = torch.arange(8.0).repeat_interleave(2)[:8].expand(2, 3, 8, 8)  # 0 0 1 1 2 2 3 3
    left, right = shrink(columns, 2)[0, 0, 0].tolist()
    assert left + right == pytest.approx(3)  # symmetric about the middle, 1.5
    assert 0.5 <= left < 1


@pytest.mark.parametrize("sizes_px", [[], [0, 32]])
def test_sizes_that_cannot_be_are_refused(sizes_px: list[int]):
    with pytest.raises(ConfigError, match="sizes_px"):
        ProgressiveSize(sizes_px)
