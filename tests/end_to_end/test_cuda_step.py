"""A step on a CUDA device, without one: fake tensors show what is left on the CPU, and what waits for the device.

They have device, type and shape, and no values: a mix of devices and a read of a value (`.item()`, `if tensor`) raise.
They do not cover the backward pass, autocast and pinned memory.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from small_fit import SmallShapes
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from imago.callbacks import ema
from imago.callbacks.progressive_size import ProgressiveSize
from imago.callbacks.train_metrics import TrainMetrics
from imago.data.sampling import BatchIndices
from imago.images import TTA_MODES
from imago.instantiate import build
from imago.task.distillation import Teacher
from imago.task.optimization import build_optimization

CUDA = torch.device("cuda", 0)
CROPS = ("data=shapes", "augment.crop_padding_px=4", "augment.flip_probability=0.5")
MIXING = (
    *("augment.brightness=0.2", "augment.contrast=0.2", "augment.saturation=0.2", "augment.hue=0.1"),
    *("augment.erase_probability=0.5", "augment.cutout_px=8", "augment.mixup_alpha=0.4", "augment.cutmix_alpha=1.0"),
)
CASES = {
    "crop and flip": (),
    "all augmentations of batches": MIXING,
    "smoothing and class weights": ("loss.label_smoothing=0.1", "loss.weight=[1,2,3,4,5,6,7,8,9,10]"),
    "class weights of mixed images": (*MIXING, "loss.weight=[1,2,3,4,5,6,7,8,9,10]"),
    "whitened net": ("model=whitened_resnet",),
    "small resnet": ("model=small_resnet", "optimizer=muon"),
    "resnet18": ("model=resnet18", "model.weights=null"),
    "distillation": ("task=distillation", "task.teacher=some/run", *MIXING),
}


@pytest.fixture
def fake() -> Iterator[None]:
    """Turn every new tensor into one without values; those that numpy makes are on the CPU, as they would be."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # torch aborts if it deletes a fake CUDA graph
        yield


def data_on_cuda(cfg: DictConfig) -> SmallShapes:
    """Return the data module of a training on the device, after Lightning has asked for the loaders."""
    data = SmallShapes(32, num_workers=0, augment=dict(cfg.augment), seed=0, on_device="auto")
    data.set_up_data()
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        fit_loop=SimpleNamespace(epoch_loop=progress),
        strategy=SimpleNamespace(root_device=CUDA),
        **{"training": True, "current_epoch": 0, "global_rank": 0, "world_size": 1},
        **dict.fromkeys(("limit_train_batches", "limit_val_batches"), 1.0),
    )
    data.setup("fit")
    return data


def batch_of(data: SmallShapes, loader: Any) -> tuple[Tensor, Tensor]:
    """Return a batch as the network gets it, moved by Lightning's own function."""
    choices = loader.dataset.load(BatchIndices(0, np.arange(32)))
    images, labels = data.on_after_batch_transfer(move_data_to_device(choices, CUDA), 0)
    assert (images.device, labels.device, images.dtype) == (CUDA, CUDA, torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    return images, labels


def task_on_cuda(cfg: DictConfig, data: SmallShapes, case: str) -> Any:
    settings: dict[str, Any] = {}
    with CUDA:
        if case == "distillation":
            record = data.preprocess.to_dict()
            net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
            settings["teacher"] = Teacher(net, record | {"size": 40}, record)
        of_data = {"class_names": list(data.class_names), "preprocess": data.preprocess.to_dict()}
        task = build(cfg.task, _recursive_=False, **of_data, **settings)
    task._device = CUDA
    return task.train()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_step_leaves_a_tensor_on_the_cpu_or_waits_for_the_device(
    compose: Callable, fake: None, monkeypatch: pytest.MonkeyPatch, case: str
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    cfg = compose(*CROPS, "metrics=[]", *CASES[case])
    data = data_on_cuda(cfg)
    task, averaged = task_on_cuda(cfg, data, case), task_on_cuda(cfg, data, case).net
    assert {value.device for value in task.state_dict().values()} == {CUDA}
    sizes = ProgressiveSize([20, 32] if case == "whitened net" else [32])
    sizes._size_px = sizes.sizes_px[0]
    task.net.register_forward_pre_hook(sizes._shrink)
    optimizer, _ = build_optimization(cfg.optimizer, cfg.schedule, task.net, 100, 10)
    assert optimizer.defaults.get("fused", True) is True
    metrics, trainer = TrainMetrics(), SimpleNamespace(log_every_n_steps=20, accumulate_grad_batches=1)
    loader = data.train_dataloader()
    for _ in range(2):
        images, labels = batch_of(data, loader)
        outputs = task.training_step((images, labels), 0)
        assert outputs["loss"].device == CUDA
        for parameter in task.net.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        ema._average(averaged, task.net, 0.9)
        metrics.on_train_batch_end(trainer, task, outputs, (images, labels), 0)
    assert metrics._sums.loss_sum.device == metrics._sums.num_correct.device == CUDA
    assert {
        value.device for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    } == {CUDA}


@pytest.mark.slow
@pytest.mark.parametrize("tta", sorted({*TTA_MODES} - {"flip_shift_unsure"}))  # that one waits, as its docstring says
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_validation_and_test_neither(compose: Callable, fake: None, monkeypatch: pytest.MonkeyPatch, tta: str):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    cfg = compose(*CROPS, "metrics=[]")
    data = data_on_cuda(cfg)
    task = task_on_cuda(cfg, data, "").eval()
    data.trainer.training, task.tta = False, tta
    batch = batch_of(data, data.val_dataloader())
    task.validation_step(batch, 0)
    task.test_step(batch, 0)
    assert [task.metrics[split].sums.num_correct.device for split in ("val", "test")] == [CUDA, CUDA]


def test_the_detector_finds_both_faults(fake: None):
    with CUDA:
        net = nn.Linear(4, 2)
    logits = net(torch.zeros(3, 4, device=CUDA))
    with pytest.raises(RuntimeError, match="device"):
        net(torch.zeros(3, 4))
    with pytest.raises(DataDependentOutputException):
        logits.sum().item()
    with pytest.raises(DataDependentOutputException):
        bool(logits.sum() > 0)


class Copies(TorchDispatchMode):
    """Record `non_blocking` of each copy to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == CUDA:
            self.found.append(kwargs.get("non_blocking", False))
        return func(*args, **(kwargs or {}))


def test_every_copy_of_a_step_to_the_device_is_non_blocking(
    compose: Callable, fake: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    data = data_on_cuda(compose(*CROPS, *MIXING))
    loader = data.train_dataloader()
    batch_of(data, loader)  # moves mean and std once
    with Copies() as copies:
        batch_of(data, loader)
    assert len(copies.found) > 5
    assert all(copies.found)


@pytest.mark.parametrize(("device", "is_pinned"), [("cuda", True), ("cpu", False)])
def test_batches_are_pinned_for_a_network_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch, device: str, is_pinned: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = SmallShapes(32, num_workers=0, augment={}, seed=0)
    data.set_up_data()
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=SimpleNamespace(root_device=torch.device(device)), global_rank=0, world_size=1, limit_val_batches=1.0
    )
    assert data.val_dataloader().pin_memory == is_pinned
