"""Distillation: the loss against a hand computation, a teacher that is not trained, and the teacher's normalization."""

import copy
from pathlib import Path

import pytest
import torch
from small_fit import QUIET, SMALL, build_data, build_task, build_trainer
from torch import Tensor, nn
from torch.nn import functional

from imago.task.classification import ClassificationTask
from imago.task.distillation import DistillationTask, Teacher, softened_divergence

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

DISTILL = (*SMALL, "data=shapes", "task=distillation", "task.teacher=some/run", "trainer.limit_train_batches=3")


class NetWithBatchNorm(nn.Sequential):
    """A teacher whose BatchNorm statistics would change if it were trained."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(10))
        self(torch.zeros(2, 3, 32, 32))


def distill_task(compose, teacher: nn.Module, *overrides: str):
    cfg = compose(*DISTILL, *overrides)
    data = build_data(cfg)
    return cfg, data, build_task(cfg, data, teacher=teacher)


def test_the_divergence_is_the_sum_over_classes_of_softened_probabilities():
    logits, taught = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    ours, theirs = (logits / 4).softmax(1), (taught / 4).softmax(1)
    expected = 16 * (theirs * (theirs / ours).log()).sum() / 2
    torch.testing.assert_close(softened_divergence(logits, taught, 4.0), expected)
    assert softened_divergence(logits, logits + 7, 2.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_the_loss_is_the_weighted_sum_of_both(compose, alpha: float):
    teacher = NetWithBatchNorm()
    _, _, task = distill_task(compose, teacher, f"task.alpha={alpha}", "task.temperature=3")
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    logits = task(images)
    taught = teacher.eval()(images)
    expected = (1 - alpha) * functional.cross_entropy(logits, labels) + alpha * softened_divergence(logits, taught, 3.0)
    torch.testing.assert_close(task.training_loss(images, logits, labels), expected)


def test_the_teacher_is_neither_trained_nor_saved_nor_counted(compose, tmp_path: Path):
    teacher = NetWithBatchNorm()
    before = copy.deepcopy(teacher.state_dict())
    cfg, data, task = distill_task(compose, teacher, "callbacks=ema")
    trainer = build_trainer(cfg, tmp_path)
    trainer.fit(task, datamodule=data)
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == {f"net.{name}" for name in task.net.state_dict()}
    settings = checkpoint["hyper_parameters"]
    assert (settings["temperature"], settings["alpha"]) == (4.0, 0.7)
    assert "teacher" not in settings
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(parameter) for parameter in teacher.parameters()}


def test_the_student_starts_as_it_would_without_a_teacher(compose):
    _, data, task = distill_task(compose, NetWithBatchNorm())
    plain = build_task(compose(*SMALL, "data=shapes"), data)
    assert isinstance(task, DistillationTask)
    assert type(plain) is ClassificationTask
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in task.state_dict().items())


def test_validation_and_test_do_not_call_the_teacher(compose, tmp_path: Path):
    class Counter(nn.Module):
        num_calls = 0

        def forward(self, images: Tensor) -> Tensor:
            Counter.num_calls += 1
            return torch.zeros(len(images), 10)

    cfg, data, task = distill_task(compose, Counter())
    trainer = build_trainer(cfg, tmp_path)
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    assert Counter.num_calls == 3


RECORD = {"size": 8, "resize": 8, "crop": "center", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
OTHER = {"size": 8, "resize": 8, "crop": "center", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.25]}


def normalized(pixels: Tensor, record: dict) -> Tensor:
    mean, std = (torch.tensor(record[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


@pytest.mark.parametrize("record", [RECORD, OTHER])
def test_images_are_normalized_for_the_teacher(record: dict):
    pixels = torch.rand(2, 3, 8, 8)
    seen = Teacher(nn.Identity(), OTHER, student=RECORD)(normalized(pixels, RECORD))
    torch.testing.assert_close(seen, normalized(pixels, OTHER))
    assert torch.equal(Teacher(nn.Identity(), RECORD, student=RECORD)(pixels), pixels)


def test_images_are_resized_for_a_teacher_of_another_size():
    pixels = torch.full((1, 3, 8, 8), 0.5)
    pixels[..., 4:] = 1.0
    seen = Teacher(nn.Identity(), OTHER | {"size": 16}, student=RECORD)(normalized(pixels, RECORD))
    assert seen.shape == (1, 3, 16, 16)
    torch.testing.assert_close(seen[..., 0], normalized(pixels, OTHER)[..., :1, 0].expand(1, 3, 16))
    torch.testing.assert_close(seen[..., -1], normalized(pixels, OTHER)[..., :1, -1].expand(1, 3, 16))
