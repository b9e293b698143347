"""A loss that is no number ends the run; where fp16 overflowed, the scaler first gets its chance."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

from imago.runs.checkpoint import AtomicCheckpointIO
from imago.task.classification import ClassificationTask


def task(scale: float | None, weight: float = 1.0) -> Any:
    """A task's parts that decide, with a scaler of fp16 or without one."""
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    if scaler is not None:
        scaler.scale(torch.ones(1))
    plugin = SimpleNamespace(scaler=scaler)
    weights = {"weight": torch.full((3,), weight), "num_batches": torch.tensor(3)}
    return SimpleNamespace(trainer=SimpleNamespace(precision_plugin=plugin), state_dict=lambda: weights)


@pytest.mark.parametrize(
    ("scale", "weight", "is_forgiven"),
    [(65536.0, 1.0, True), (1.0, 1.0, True), (0.5, 1.0, False), (65536.0, float("nan"), False), (None, 1.0, False)],
)
def test_an_overflow_is_forgiven_while_the_scale_can_fall(scale, weight: float, is_forgiven: bool):
    assert ClassificationTask._scale_can_fall(task(scale, weight)) is is_forgiven


def test_the_state_of_the_scaler_is_in_the_checkpoint_and_comes_back(tmp_path: Path):
    class Module(LightningModule):
        """One weight; the first step's gradient overflows, so the scaler halves its scale."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return (
                self.weight * batch[0] * (float("inf") if self.trainer.global_step == batch_idx == 0 else 1.0)
            ).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    def trainer(max_epochs: int) -> Trainer:
        precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        plugins = [precision, AtomicCheckpointIO()]
        return Trainer(accelerator="cpu", max_epochs=max_epochs, plugins=plugins, default_root_dir=tmp_path, **quiet)

    batches = DataLoader(TensorDataset(torch.ones(3, 1)))
    first, second = trainer(1), trainer(1)
    first.fit(Module(), batches)
    assert first.precision_plugin.scaler.get_scale() == 512.0
    first.save_checkpoint(tmp_path / "last.ckpt")
    second.fit(Module(), batches, ckpt_path=tmp_path / "last.ckpt")
    assert second.precision_plugin.scaler.get_scale() == 512.0
