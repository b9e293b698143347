"""The preprocess record of a run, and first weights that come from the first training batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from imago.errors import DataError
from imago.images import Preprocess
from imago.training.build import build_data, build_task, decide_preprocess
from imago.training.machine_checks import check_machine

NOTHING = dict.fromkeys(("size", "resize", "crop", "interpolation", "mean", "std"))
IMAGENET = {"size": 224, "resize": 256, "crop": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IMAGENET["interpolation"] = "bicubic"
SMALL = Preprocess(32, 32, "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
LARGE = Preprocess(200, 250, "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


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


def test_a_resumed_run_does_not_compute_first_filters(first_filters: Callable):
    filters = first_filters("resume=somewhere")
    assert not torch.allclose(filters[:12], -filters[12:])


def test_a_damaged_weights_file_is_refused_before_data_is_read(compose: Callable, tmp_path: Path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    nowhere = ("data=image_folder", f"data.root={tmp_path / 'nowhere'}")
    cfg = compose(*nowhere, f"model.weights={tmp_path / 'cut.pth'}")
    with pytest.raises(DataError, match=r"cut\.pth is damaged or not a file of weights"):
        check_machine(cfg)


def test_the_preprocess_record_defaults_to_that_of_the_data_set():
    assert decide_preprocess(NOTHING, None, SMALL) == (SMALL, "from the data set")


def test_pretrained_weights_decide_everything_for_large_images():
    record, origin = decide_preprocess(NOTHING, IMAGENET, LARGE)
    assert record.to_dict() == IMAGENET
    assert origin == "all from the pretrained weights"


def test_small_images_keep_their_size_and_take_the_weights_mean_and_std():
    record, origin = decide_preprocess(NOTHING, IMAGENET, SMALL)
    assert (record.size, record.resize) == (32, 32)
    assert list(record.mean) == IMAGENET["mean"]
    assert origin == "mean and std from the pretrained weights, the rest from the data set"


def test_weights_of_small_images_decide_everything_for_small_ones():
    of_a_run = {"size": 28, "resize": 30, "crop": "center", "mean": [0.5] * 3, "std": [0.2] * 3}
    record, origin = decide_preprocess(NOTHING, of_a_run, SMALL)
    assert record.to_dict() == of_a_run | {"interpolation": "bilinear"}, "as a record without one meant it"
    assert origin == "all from the pretrained weights"


def test_typed_values_override_the_pretrained_weights():
    record, origin = decide_preprocess(NOTHING | {"mean": [0.5, 0.5, 0.5]}, IMAGENET, LARGE)
    assert record.mean == (0.5, 0.5, 0.5)
    assert list(record.std) == IMAGENET["std"]
    assert origin.startswith("mean as typed")


def test_a_typed_size_scales_resize():
    record, _ = decide_preprocess(NOTHING | {"size": 100}, None, LARGE)
    assert (record.size, record.resize) == (100, 125)
    record, _ = decide_preprocess(NOTHING | {"size": 100, "resize": 110}, None, LARGE)
    assert (record.size, record.resize) == (100, 110)
