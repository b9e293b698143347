"""Callbacks that interrupt a run at a given step, as `+callbacks.broken={_target_: interruptions.NAME, step: 5}`."""

import os
import signal
import time

from lightning.pytorch import Callback

from imago.callbacks.train_metrics import num_steps_done
from imago.errors import DataError


class _At(Callback):
    """Call `interrupt` before each batch of an optimizer step."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if num_steps_done(trainer) == self.step and trainer.global_rank == self.rank:
            self.interrupt(trainer, batch_idx)

    def interrupt(self, trainer, batch_idx):
        raise NotImplementedError


class Raise(_At):
    """Raise the error of a bug."""

    def interrupt(self, trainer, batch_idx):
        raise ZeroDivisionError("broken on purpose")


class RaiseWithSeed1(Raise):
    """Raise in the run with this seed only: in one trial of a sweep."""

    def __init__(self, step: int, rank: int, seed: int) -> None:
        super().__init__(step if str(seed) == "1" else -1, rank)


class RaiseForUser(_At):
    """Raise an error that a user can correct."""

    def interrupt(self, trainer, batch_idx):
        raise DataError("the images are gone.")


class Signal(_At):
    """Send a signal to the process that the user started, and only to that one."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        super().__init__(step)
        self.number = number
        self.is_sent = False
        self.target = os.getpid()  # built before a rank is forked

    def interrupt(self, trainer, batch_idx):
        if not self.is_sent:
            self.is_sent = True
            os.kill(self.target, self.number)
            time.sleep(0.2)  # a forked rank gets it from its parent


class CtrlC(_At):
    """Press Ctrl-C, as every system knows it."""

    def interrupt(self, trainer, batch_idx):
        signal.raise_signal(signal.SIGINT)


class Spoil(_At):
    """Make the weights infinite, as too high a learning rate does."""

    def interrupt(self, trainer, batch_idx):
        next(trainer.lightning_module.parameters()).data.fill_(float("inf"))


class Kill(_At):
    """Send SIGKILL to all processes of the run."""

    def interrupt(self, trainer, batch_idx):
        os.killpg(0, signal.SIGKILL)


class KillRank(_At):
    """Send SIGKILL to one rank, as the system does when it is out of memory."""

    def interrupt(self, trainer, batch_idx):
        os.kill(os.getpid(), signal.SIGKILL)


class SignalInValidation(Callback):
    """Send SIGTERM during a validation."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if num_steps_done(trainer) == self.step and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Slow(Callback):
    """Sleep in every batch, so that the run can be stopped from outside."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(self.seconds)


class SlowTest(Callback):
    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        print("testing", flush=True)
        time.sleep(30)
