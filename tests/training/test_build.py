"""The preprocess record of a run, and first weights that come from the first training batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import small_fit
import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from imago.images import Preprocess
from imago.training.build import build_task, choose_preprocess, final_checkpoint, warn_of_text_order

NOTHING = dict.fromkeys(("size", "resize", "crop", "interpolation", "mean", "std"))
IMAGENET = {"size": 224, "resize": 256, "crop": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IMAGENET["interpolation"] = "bicubic"
STATISTICS = {name: IMAGENET[name] for name in ("mean", "std")}
OF_A_RUN = {"size": 28, "resize": 30, "crop": "center", "mean": [0.5] * 3, "std": [0.2] * 3}  # no interpolation: old
SMALL = Preprocess(32, 32, "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
LARGE = Preprocess(200, 250, "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture
def first_filters(compose: Callable) -> Callable[..., Tensor]:
    """The first filters of a WhitenedResNet, as a run with these settings has them before its first step."""

    def build(*overrides: str) -> Tensor:
        cfg = compose("data=shapes", "model=whitened_resnet", "data.batch_size=32", *overrides)
        seed_everything(cfg.seed, verbose=False)
        return build_task(cfg, small_fit.build_data(cfg)).net.whitening.weight.detach()

    return build


def test_the_first_filters_come_from_the_first_training_batch(first_filters: Callable):
    filters = first_filters()
    torch.testing.assert_close(filters[:12], -filters[12:])
    torch.testing.assert_close(first_filters(), filters, rtol=0, atol=0)
    assert not torch.allclose(first_filters("seed=1"), filters)


def test_a_resumed_run_does_not_compute_first_filters(first_filters: Callable):
    filters = first_filters("resume=somewhere")
    assert not torch.allclose(filters[:12], -filters[12:])


@pytest.mark.parametrize(
    ("typed", "weights", "data", "expected", "origin"),
    [
        ({}, None, SMALL, {}, "from the dataset"),
        ({}, IMAGENET, LARGE, IMAGENET, "from the pretrained weights"),
        ({}, IMAGENET, SMALL, STATISTICS, "from the dataset, mean and std from the pretrained weights"),
        ({}, OF_A_RUN, SMALL, OF_A_RUN, "from the pretrained weights"),
        ({"mean": [0.5] * 3}, IMAGENET, LARGE, IMAGENET | {"mean": [0.5] * 3}, "mean as typed, else from the pre"),
        ({"size": 100}, None, LARGE, {"size": 100, "resize": 125}, "size resize as typed, else from the dataset"),
        ({"size": 100, "resize": 110}, None, LARGE, {"size": 100, "resize": 110}, "size resize as typed"),
    ],
    ids=["dataset", "weights", "small images keep their size", "weights of small images", "mean", "size", "resize"],
)
def test_images_are_prepared_as_typed_else_for_the_weights_else_as_the_dataset_says(
    typed: dict, weights: dict | None, data: Preprocess, expected: dict, origin: str
):
    record, description = choose_preprocess(NOTHING | typed, weights, data)
    assert record.to_dict() == data.to_dict() | expected
    assert description.startswith(origin)


def test_a_run_without_a_best_checkpoint_tests_its_last_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("WARNING", "imago"):
        assert final_checkpoint(tmp_path) is None
    assert "testing the last weights" in caplog.text


@pytest.mark.parametrize(
    ("names", "is_warning"),
    [
        (("0", "1", "10", "2"), True),
        (("00", "01", "02", "10"), False),
        (("0", "1", "2"), False),
        (("1", "10", "a"), False),
    ],
)
def test_numbers_as_class_names_that_are_in_the_order_of_texts_are_a_warning(
    names: tuple[str, ...], is_warning: bool, caplog: pytest.LogCaptureFixture
):
    warn_of_text_order(names)
    assert [f"in the order of texts: {', '.join(names)}; a list" in text for text in caplog.messages] == [
        True
    ] * is_warning
