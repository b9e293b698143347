"""Stop training after a signal or a time limit so that it can be resumed, and record the ranks that failed."""

import logging
import math
import os
import signal
import threading
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from torch import Tensor

from imago.callbacks.train_metrics import num_steps_done
from imago.errors import ConfigError
from imago.runs.failure import write_killed_failure
from imago.runs.run_directory import RunDirectory
from imago.runs.signals import STOP_SIGNALS, stopped_by

log = logging.getLogger(__name__)

_BLOCKED_S = 30.0  # as long as torchrun waits for its processes


class StopOnSignal(Callback):
    """Save and stop before the next batch that begins an optimizer step.

    A signal during validation takes effect after it. The ranks agree on the batch: if one stopped alone, the others
    would wait for it. The failure of each rank is written to the run directory.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.alive_s = 0.0  # when the last batch began, by the monotonic clock
        self._before: tuple[Tensor, torch.cuda.Event] | None = None  # highest signal of the last step on a GPU

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.directory.signals.install()  # in a forked rank for the first time
        if stage == "fit" and trainer.world_size > 1 and trainer.is_global_zero:
            _leave_when_blocked(self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.directory.signals.is_deferred = True
        self.directory.signals.install()  # Lightning's handlers, by now installed, stop within a step
        # Lightning asks all ranks for its own handler's signal before each batch, and waits for the device to answer.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.alive_s = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.alive_s = time.monotonic()
        if batch_idx % trainer.accumulate_grad_batches:
            return
        received_signal = self.directory.signals.received_signal or 0
        if trainer.world_size > 1:  # so that all ranks stop at the same batch
            received_signal = self._highest_of_ranks(received_signal, trainer.strategy.root_device)
        if received_signal:
            self.alive_s = math.inf  # a save may take long
            for callback in trainer.checkpoint_callbacks:
                if hasattr(callback, "save_now"):  # `LastCheckpoint`, which is optional
                    callback.save_now(trainer)
            raise stopped_by(received_signal)

    def _highest_of_ranks(self, received_signal: int, device: torch.device) -> int:
        """Return the highest number of a signal in any rank; on a GPU as it was one step before.

        To read the newest one, the process would wait until the GPU has finished all steps so far.
        """
        highest = torch.full((1,), received_signal, device=device)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
        if device.type != "cuda":
            return int(highest)
        copied, before = torch.cuda.Event(), self._before
        self._before = highest.to("cpu", non_blocking=True), copied
        copied.record()
        if before is None:
            return 0
        before[1].synchronize()
        return int(before[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.directory.signals.is_deferred = False  # everything is saved, and the final test can be repeated

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.directory.signals.install()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        is_failure = isinstance(exception, Exception) and self.directory.signals.received_signal is None
        is_from_forked_rank = type(exception).__module__.startswith("torch.multiprocessing")
        if is_failure and not is_from_forked_rank and trainer.world_size > 1:
            self.directory.record_failure(exception)


def _leave_when_blocked(stopper: StopOnSignal) -> None:
    """Exit without saving if no batch begins for 30 s after a stop signal, as beside a frozen rank.

    This process may wait for it within torch, where Python's signal handlers do not run: hence the pipe and a thread.
    """
    directory = stopper.directory
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # not of signals to a loader worker

    def leave() -> None:
        while (number := os.read(reader, 1)[0]) not in STOP_SIGNALS:
            pass
        start_s = time.monotonic()
        while time.monotonic() < max(start_s, stopper.alive_s) + _BLOCKED_S:
            time.sleep(0.1)
        if not directory.has_ended:
            stop = stopped_by(number)
            log.info("stopped by %s without saving: another process of the run does not respond", stop.reason)
            directory.write_end("stopped", stop.reason)
            directory.signals.forward(signal.SIGKILL)
            os._exit(int(str(stop.code)))

    threading.Thread(target=leave, daemon=True).start()


def watch_ranks(trainer: Trainer, directory: RunDirectory) -> None:
    """Record at once that a rank ended, also before it is connected: soon Lightning kills this process too."""

    def watch(rank: int, process: Any) -> None:
        exit_code = process.wait()
        write_killed_failure(directory.path, rank, exit_code)
        if exit_code:
            directory.update()

    def start_and_watch() -> None:
        start_ranks()
        for rank_and_process in directory.signals.rank_processes().items():
            threading.Thread(target=watch, args=rank_and_process, daemon=True).start()

    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        start_ranks = launcher._call_children_scripts
        launcher._call_children_scripts = start_and_watch  # type: ignore[method-assign]


def call_on_exception_in_forked_ranks(trainer: Trainer) -> None:
    """Call `on_exception` of the callbacks in the rank that failed, with trainer.strategy=ddp_fork.

    Lightning calls it in the main process only, which gets the error as text.
    """
    run = trainer._run

    def run_and_report(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except BaseException as error:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_exception(trainer, trainer.lightning_module, error)
            raise

    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        trainer._run = run_and_report  # type: ignore[method-assign]


class TimeLimit(Timer):
    """End training after `trainer.max_time`, after a batch that ends an optimizer step.

    Lightning's own may end it between batches that accumulate to one step, or before a validation within the epoch,
    which the resumed run would skip.

    Args:
        duration: as `trainer.max_time`, e.g. "00:12:00:00", days first; it includes the time before a resume.
    """

    def __init__(self, duration: str | dict[str, int]) -> None:
        super().__init__(duration, verbose=False)
        self.duration = duration
        self.has_ended_epoch_early = False  # whether training ended before the epoch did

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Raise a ConfigError if no time is left."""
        super().on_fit_start(trainer, *args, **kwargs)
        if trainer.should_stop:
            raise ConfigError(f"trainer.max_time={self.duration}: no time is left; a longer time continues the run.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        is_last = batch_idx + 1 == trainer.num_training_batches
        ends_step = is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and (is_last or not loop.epoch_loop._should_check_val_fx(loop._data_fetcher)):  # type: ignore[arg-type]
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.has_ended_epoch_early = trainer.should_stop and not is_last


class StepLimit(Callback):
    """End training after `trainer.max_steps` with a validation, which Lightning leaves out within an epoch.

    With manual optimization, Lightning would count the steps of each optimizer; here they are batches, as elsewhere.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps  # of the whole run
        self.has_ended_epoch_early = False  # whether training ended before the epoch did

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if num_steps_done(trainer) >= self.max_steps:  # resumed only to test
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if num_steps_done(trainer) >= self.max_steps and batch_idx + 1 < trainer.num_training_batches:
            trainer.should_stop = self.has_ended_epoch_early = True


def has_epoch_ended_early(trainer: Trainer, limit_types: Any = (TimeLimit, StepLimit)) -> bool:
    """Return whether a limit of time or of steps has ended the current epoch early."""
    limits = [callback for callback in trainer.callbacks if isinstance(callback, limit_types)]  # type: ignore[attr-defined]
    return any(limit.has_ended_epoch_early for limit in limits)
