"""Callbacks that break a run off at a given step, as `+callbacks.broken={_target_: interruptions.NAME, step: 5}`."""

import os
import signal
import time

from lightning.pytorch import Callback

from imago.errors import DataError


class _At(Callback):
    """Does it once, before the first batch of that optimizer step and later ones."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            self.break_off(trainer, batch_idx)

    def break_off(self, trainer, batch_idx):
        raise NotImplementedError


class Raise(_At):
    """A bug in the middle of a step's hooks."""

    def break_off(self, trainer, batch_idx):
        raise ZeroDivisionError("broken on purpose")


class RaiseForUser(_At):
    """Something that the user can mend."""

    def break_off(self, trainer, batch_idx):
        raise DataError("the images are gone.")


class RaiseWithin(_At):
    """A bug between the batches that accumulate to one step."""

    def break_off(self, trainer, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches:
            raise ZeroDivisionError("broken on purpose")


class Signal(_At):
    """A signal to the process that the user started, and to that one alone."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        super().__init__(step)
        self.number = number
        self.is_sent = False
        self.target = os.getpid()  # it is built before any rank is forked

    def break_off(self, trainer, batch_idx):
        if not self.is_sent:
            self.is_sent = True
            os.kill(self.target, self.number)
            time.sleep(0.2)  # a forked rank hears of it from its parent


class Kill(_At):
    """kill -9 for all processes of the run."""

    def break_off(self, trainer, batch_idx):
        os.killpg(0, signal.SIGKILL)


class KillRank(_At):
    """kill -9 for one rank: what the system does when memory runs out."""

    def break_off(self, trainer, batch_idx):
        os.kill(os.getpid(), signal.SIGKILL)


class RaiseInValidation(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.step and batch_idx == 1:
            raise ZeroDivisionError("broken on purpose")


class SignalInValidation(Callback):
    """SIGTERM in the middle of a validation."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.step and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Slow(Callback):
    """Keeps a run busy long enough to be stopped from outside, a little in every batch."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(self.seconds)


class SlowTest(Callback):
    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        print("testing", flush=True)
        time.sleep(30)
