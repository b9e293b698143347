"""What a signal does to a training: it ends before the next step, on all ranks at once, with its state saved."""

import threading
from subprocess import Popen
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from imago.runs.failure import record_exit
from imago.runs.run_directory import RunDirectory
from imago.runs.signals import stopped_by


class StopOnSignal(Callback):
    """Leaves between two optimizer steps, or between two batches of the validation where there is one process.

    With several, all leave before the same batch, whichever of them got the signal: one that leaves alone would let
    the others wait for it.

    Args:
        folder: of the run; it has the signals, and gets the failure of each rank.
    """

    def __init__(self, folder: RunDirectory) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder.signals.install()  # a rank that was forked or spawned has none of its own yet
        if stage == "fit":
            for rank, process in enumerate(self.folder.signals.started_ranks(), start=1):
                threading.Thread(target=_watch, args=(self.folder, rank, process), daemon=True).start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.signals.is_deferred = True
        self.folder.signals.install()  # Lightning's handler, by now in place, speaks to the other ranks in mid-step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:  # else gradients wait, and a checkpoint has none
            self._leave_if_told(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Ranks may have different numbers of validation batches: there they cannot ask one another.
        if trainer.world_size == 1 and self.folder.signals.is_deferred:
            self._leave_if_told(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.signals.is_deferred = False  # all is saved: what comes now can be done again

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.signals.install()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        is_failure = isinstance(exception, Exception) and self.folder.signals.received is None
        is_of_another = type(exception).__module__.startswith("torch.multiprocessing")  # in the process that waits
        if is_failure and not is_of_another and trainer.world_size > 1:
            self.folder.record_failure(exception)

    def _leave_if_told(self, trainer: Trainer) -> None:
        received = self.folder.signals.received or 0
        if trainer.world_size > 1:
            told = torch.tensor([received], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            received = int(told)
        if received:
            raise stopped_by(received)


def _watch(folder: RunDirectory, rank: int, process: Popen) -> None:
    """Write down what became of a rank at once: Lightning kills this process, too, within five seconds."""
    exit_code = process.wait()
    record_exit(folder.path, rank, exit_code)
    if exit_code:
        folder.mark_failed()
