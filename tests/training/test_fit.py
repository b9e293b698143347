"""What a run builds: a network whose first weights come from images sees the training images of this run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from imago.errors import DataError
from imago.runs.run_directory import RunDirectory
from imago.training.fit import build_data, build_task, set_up


@pytest.fixture
def first_filters(compose: Callable) -> Callable[..., Tensor]:
    """The first filters of a WhitenedResNet, as a run with these settings has them before its first step."""

    def build(*overrides: str) -> Tensor:
        cfg = compose("data=shapes", "model=whitened_resnet", *overrides)
        seed_everything(cfg.seed, verbose=False)
        return build_task(cfg, build_data(cfg)[0]).net.whitening.weight.detach()

    return build


@pytest.mark.slow
def test_the_first_filters_come_from_the_first_training_batch(first_filters: Callable):
    filters = first_filters()
    torch.testing.assert_close(filters[:12], -filters[12:])
    torch.testing.assert_close(first_filters(), filters, rtol=0, atol=0)
    assert not torch.allclose(first_filters("seed=1"), filters)


def test_a_resumed_run_leaves_them_to_the_checkpoint(first_filters: Callable):
    filters = first_filters("resume=somewhere")
    assert not torch.allclose(filters[:12], -filters[12:])


def test_a_damaged_file_of_weights_is_told_before_any_data_is_read(compose: Callable, tmp_path: Path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    nowhere = ("data=image_folder", f"data.root={tmp_path / 'nowhere'}")
    cfg = compose(*nowhere, f"model.weights={tmp_path / 'cut.pth'}")
    with pytest.raises(DataError, match=r"cut\.pth is no file of weights"):
        set_up(cfg, RunDirectory(tmp_path / "run", tmp_path))
