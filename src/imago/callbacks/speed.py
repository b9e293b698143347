"""How many images a second, and how much of that time was spent waiting for data."""

from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Speed(Callback):
    """Logs `images_per_s` and `data_wait_share` on logging steps, and keeps the totals of the run.

    Only the wall clock is read: no device is asked to finish its work, so on a GPU a single window may be off while
    the totals are right.

    Attributes:
        num_images: images trained on by all ranks in this process's lifetime.
        train_s: seconds from the first fetch to the end of the last step, without validation.
        wait_s: the part of `train_s` spent between steps: fetching, transferring and preparing a batch.
        val_s: seconds of validation.
        test_s: seconds of the test.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.train_s = 0.0
        self.wait_s = 0.0
        self.val_s = 0.0
        self.test_s = 0.0
        self._window = (0, 0.0, 0.0)  # num_images, train_s and wait_s at the last logging step
        self._mark = 0.0
        self._eval_start = 0.0
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch that is resumed in its middle has no start of its own.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._mark = perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = perf_counter()
        self.wait_s += now - self._mark
        self.train_s += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = perf_counter()
        self.train_s += now - self._mark
        self._mark = now
        self.num_images += len(batch[0]) * trainer.world_size
        has_stepped = trainer.global_step != self._step  # not so for a batch that only accumulates
        self._step = trainer.global_step
        if has_stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_window(pl_module, step=trainer.global_step - 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._eval_start = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = perf_counter()  # validation within an epoch is not time spent waiting for training data
        self.val_s += self._mark - self._eval_start

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._eval_start = perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.test_s += perf_counter() - self._eval_start

    def _log_window(self, pl_module: LightningModule, step: int) -> None:
        images, train_s, wait_s = self._window
        elapsed_s = self.train_s - train_s
        values = {
            "images_per_s": (self.num_images - images) / elapsed_s,
            "data_wait_share": (self.wait_s - wait_s) / elapsed_s,
        }
        pl_module.log_step(values, step)  # type: ignore[operator]  # of our task
        self._window = (self.num_images, self.train_s, self.wait_s)
