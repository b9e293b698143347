"""How much memory training took at most."""

import resource
import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

_BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, see getrusage(2)


class Memory(Callback):
    """Logs `peak_memory_gib` on logging steps: what tensors took on the GPU, or what the whole process took on a CPU.

    Of the process that logs alone; workers that prepare batches have memory of their own.
    """

    def __init__(self) -> None:
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step  # a resumed run has not stepped yet

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        has_stepped = trainer.global_step != self._step  # not so for a batch that only accumulates
        self._step = trainer.global_step
        if has_stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            module: Any = pl_module  # of our task
            module.log_step({"peak_memory_gib": peak_memory_gib(pl_module.device)}, trainer.global_step - 1)


def peak_memory_gib(device: torch.device) -> float:
    """Give the most memory that was in use at once, in GiB; asking does not wait for the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_UNIT / 2**30
