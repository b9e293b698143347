"""Stop training after a signal, on all ranks before the same batch, with the state saved."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from imago.callbacks.last_checkpoint import LastCheckpoint
from imago.runs.failure import write_killed
from imago.runs.run_directory import RunDirectory
from imago.runs.signals import stopped_by


class StopOnSignal(Callback):
    """Save and stop before the next batch that begins an optimizer step.

    A signal during validation takes effect after it. The ranks agree on the batch: if one stopped alone, the others
    would wait for it.

    Args:
        directory: of the run; holds the signals, and gets the failure of each rank.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.directory.signals.install()  # in a forked rank for the first time
        if stage == "fit":
            for rank, process in self.directory.signals.rank_processes().items():
                threading.Thread(target=_watch, args=(self.directory, rank, process), daemon=True).start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.directory.signals.is_deferred = True
        self.directory.signals.install()  # Lightning's handlers, by now installed, stop within a step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        received = self.directory.signals.received or 0
        if trainer.world_size > 1:
            highest = torch.tensor([received], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            received = int(highest)
        if received:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.save(trainer)
            raise stopped_by(received)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.directory.signals.is_deferred = False  # all is saved, and what follows can be repeated

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.directory.signals.install()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        is_failure = isinstance(exception, Exception) and self.directory.signals.received is None
        is_of_forked_rank = type(exception).__module__.startswith("torch.multiprocessing")
        if is_failure and not is_of_forked_rank and trainer.world_size > 1:
            self.directory.record_failure(exception)


def _watch(directory: RunDirectory, rank: int, process: Any) -> None:
    """Record at once that a rank ended: within five seconds Lightning kills this process, too."""
    exit_code = process.wait()
    write_killed(directory.path, rank, exit_code)
    if exit_code:
        directory.mark_failed()


def call_on_exception_in_forked_ranks(trainer: Trainer) -> None:
    """Call `on_exception` of the callbacks in the rank that failed, with trainer.strategy=ddp_fork.

    Lightning calls it in the main process only, which gets the error as text.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        launch = launcher.launch

        def launch_reporting(function: Callable, *args: Any, **kwargs: Any) -> Any:
            return launch(partial(_report, trainer, function), *args, **kwargs)

        launcher.launch = launch_reporting  # type: ignore[method-assign]


def _report(trainer: Trainer, function: Callable, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_exception(trainer, trainer.lightning_module, error)
        raise
