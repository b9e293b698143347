"""The gradient of a step is that of one batch of all its images, also in parts, with class weights and with ranks."""

import contextlib
import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from small_fit import QUIET, SMALL, SmallShapes, build_data, build_task, build_trainer
from torch import nn
from torch.nn import functional
from warm_runs import TWO, WarmRuns

from imago.callbacks.mean_gradient import MeanGradient
from imago.errors import ConfigError

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

WEIGHT = [1.0] * 9 + [30.0]


def flatten(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


class CompareGradients(Callback):
    """Compute the gradient of one batch of all images of the step with autograd, and record both."""

    def __init__(self, weight: list[float] | None) -> None:
        self.weight = None if weight is None else torch.tensor(weight)
        self.parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.sizes: list[int] = []
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.parts.append((batch[0].clone(), batch[1].clone()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        images, labels = map(torch.cat, zip(*self.parts, strict=True))
        weights = list(pl_module.net.parameters())
        with torch.enable_grad():
            loss = functional.cross_entropy(pl_module.net(images), labels, self.weight)
            expected = torch.autograd.grad(loss, weights)
        self.pairs.append((flatten([weight.grad for weight in weights]), flatten(expected)))
        self.sizes.append(len(self.parts))
        self.parts.clear()


@pytest.mark.slow
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize(("accumulate", "num_batches", "sizes"), [(2, 3, [2, 1]), (4, 1, [1]), (1, 2, [1, 1])])
def test_accumulated_batches_count_as_one_batch(
    compose, tmp_path: Path, weight: list[float] | None, accumulate: int, num_batches: int, sizes: list[int]
):
    cfg = compose(
        *("data=shapes", *SMALL, "augment=none", "model.dropout=0", f"loss.weight={weight or 'null'}"),
        *(f"trainer.accumulate_grad_batches={accumulate}", f"trainer.limit_train_batches={num_batches}"),
        *("trainer.limit_val_batches=1", "trainer.gradient_clip_val=1000"),
    )
    data = build_data(cfg, SmallShapes)
    compared = CompareGradients(WEIGHT if weight else None)
    build_trainer(cfg, tmp_path, MeanGradient(), compared).fit(build_task(cfg, data), datamodule=data)
    assert compared.sizes == sizes
    for gradient, expected in compared.pairs:
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_class_weights_of_a_loss_that_does_not_say_their_sum_are_refused_in_several_parts(compose, tmp_path: Path):
    settings = ("data=shapes", *SMALL, "trainer.limit_train_batches=2", "trainer.limit_val_batches=1")
    for accumulate in (1, 2):
        cfg = compose(*settings, f"trainer.accumulate_grad_batches={accumulate}")
        data = build_data(cfg)
        task = build_task(cfg, data)
        task.loss = nn.CrossEntropyLoss(weight=torch.tensor(WEIGHT))
        refused = pytest.raises(ConfigError, match="CrossEntropyLoss has no attribute total_weight")
        with refused if accumulate > 1 else contextlib.nullcontext():
            build_trainer(cfg, tmp_path, MeanGradient()).fit(task, datamodule=data)


TASK = "task._target_=own_tasks."
HIDDEN = ("loss._target_=own_tasks.HiddenWeights", "~loss.label_smoothing")


@pytest.mark.parametrize(
    ("settings", "world_size", "reason"),
    [
        (("task._target_=own_tasks.Manual", "trainer.accumulate_grad_batches=1"), 2, "steps its optimizers itself"),
        (HIDDEN, 1, "HiddenWeights has no attribute total_weight"),
        ((*HIDDEN, "+loss.divides_by_images=true"), 1, None),
        ((f"{TASK}Penalized",), 1, "Penalized has its own training_loss"),
        (("task._target_=own_tasks.LossOnly",), 2, "LossOnly has its own training_step"),
        ((f"{TASK}LikeLoss",), 1, None),
        ((f"{TASK}Penalized", "loss.weight=null"), 1, None),
        ((), 2, None),
    ],
)
def test_typed_class_weights_are_refused_where_the_division_of_the_parts_is_unknown(
    compose, settings: tuple[str, ...], world_size: int, reason: str | None
):
    cfg = compose(
        *("data=shapes", *SMALL, "trainer.accumulate_grad_batches=2", f"loss.weight={WEIGHT}", *settings),
    )
    task = build_task(cfg, build_data(cfg))
    trainer: Any = SimpleNamespace(accumulate_grad_batches=cfg.trainer.accumulate_grad_batches, world_size=world_size)
    with pytest.raises(ConfigError, match=reason) if reason else contextlib.nullcontext():
        MeanGradient().on_fit_start(trainer, task)
    MeanGradient().on_fit_start(SimpleNamespace(accumulate_grad_batches=1, world_size=1), task)  # a single part


@pytest.mark.slow
def test_two_ranks_with_uneven_shares_have_the_gradient_of_one_process(tmp_path: Path):
    """7 images, so that the ranks get 4 and 3; with accumulation the last step of the epoch has one batch."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for index in range(7):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            folder = tmp_path / "images" / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    settings = (
        *("data=image_folder", f"data.root={tmp_path / 'images'}", "data.batch_size=8", "loss.weight=[1,30]"),
        *("trainer.max_epochs=1", "trainer.log_every_n_steps=1", "trainer.precision=32-true", "augment=none"),
        *("trainer.accumulate_grad_batches=2", "model.dropout=0", "schedule=constant"),
    )
    runs = WarmRuns(tmp_path / "logs")
    norms = []
    for name, more in (("one", ("trainer.accelerator=cpu",)), ("two", TWO)):
        runs.run(*settings, *more, f"run_name={name}")
        rows = list(csv.DictReader((runs.logs / "train" / name / "metrics.csv").open()))
        norms.append([float(row["grad_norm"]) for row in rows if row["grad_norm"]])
    assert len(norms[0]) == 1
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
