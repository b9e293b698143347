"""Log training speed, peak memory and the gradient norm on logging steps."""

import logging
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from imago.callbacks.train_metrics import log_step, num_steps_done
from imago.resources import num_interrupts, peak_memory_bytes

log = logging.getLogger(__name__)

# A run on the CPU is slowed down by other processes if, against its start, it makes at most this share of the images/s
# while the kernel interrupts it this many times more often (and at least this often per second); our own choices.
_SLOW_SHARE, _MORE_INTERRUPTS, _MIN_INTERRUPTS_PER_S = 0.6, 3, 20


class GradNorm(Callback):
    """Log `grad_norm`: the L2 norm of the gradients of all parameters, before clipping."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = num_steps_done(trainer)
        if (step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None]).item()
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                norm /= scaler.get_scale()  # a fused optimizer removes the scale of fp16 itself, in its step
            log_step(trainer, {"grad_norm": norm}, step)


class _OnLoggingStep(Callback):
    """Log what `measure` returns at the end of each optimizer step that is a logging step."""

    _step = 0  # optimizer steps at the end of the last batch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = num_steps_done(trainer)  # not 0 in a resumed run

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        step = num_steps_done(trainer)
        has_stepped, self._step = step != self._step, step
        if has_stepped and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            log_step(trainer, self.measure(pl_module.device), step - 1)

    def measure(self, device: torch.device) -> dict[str, float]:
        raise NotImplementedError


class Memory(_OnLoggingStep):
    """Log `peak_memory_gib`: of the tensors on a GPU; on a CPU of the process, without loader workers."""

    def measure(self, device: torch.device) -> dict[str, float]:
        """Return the highest memory use so far; this does not synchronize with the device."""
        is_on_gpu = device.type == "cuda"
        peak_bytes = torch.cuda.max_memory_allocated(device) if is_on_gpu else peak_memory_bytes()
        return {"peak_memory_gib": peak_bytes / 2**30}


class Speed(_OnLoggingStep):
    """Log `images_per_s` and `data_wait_share`, and keep the totals of the run.

    It reads only the wall clock and does not wait for the device: on a GPU the value of a single logging step may be
    off, while the totals are right.

    Attributes:
        num_images: images trained on by all ranks since this process started.
        train_s: seconds from the first fetch to the end of the last step, without validation.
        wait_s: the part of `train_s` between steps: fetching, transferring and preparing a batch.
        val_s: time of validation, also of one within an epoch, in seconds.
        test_s: time of the final test, in seconds.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.train_s = self.wait_s = self.val_s = self.test_s = 0.0
        self._totals_when_logged = (0, 0.0, 0.0)  # num_images, train_s and wait_s
        self._num_interrupts = 0  # by the kernel, at the last logging step
        self._rates: list[tuple[float, float]] = []  # images and interrupts per s, of the first two logging steps
        self._has_warned = False
        self._mark_s = 0.0  # time of the previous call of `_lap_s`

    def _lap_s(self) -> float:
        """Return the seconds since the previous call, and restart the clock."""
        before_s, self._mark_s = self._mark_s, perf_counter()
        return self._mark_s - before_s

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._lap_s()  # an epoch that is resumed in the middle does not call on_train_epoch_start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap_s()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        wait_s = self._lap_s()
        self.wait_s += wait_s
        self.train_s += wait_s

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.train_s += self._lap_s()
        self.num_images += len(batch[0]) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def measure(self, device: torch.device) -> dict[str, float]:
        num_images, train_s, wait_s = self._totals_when_logged
        self._totals_when_logged = (self.num_images, self.train_s, self.wait_s)
        elapsed_s = self.train_s - train_s
        rate = (self.num_images - num_images) / elapsed_s
        interrupts_before, self._num_interrupts = self._num_interrupts, num_interrupts()
        if device.type == "cpu" and torch.get_num_threads() > 1:
            self._warn_if_slowed_down(rate, (self._num_interrupts - interrupts_before) / elapsed_s)
        return {"images_per_s": rate, "data_wait_share": (self.wait_s - wait_s) / elapsed_s}

    def _warn_if_slowed_down(self, rate: float, interrupts_per_s: float) -> None:
        """Compare with the second logging step, as the first one warms up; log a warning once."""
        if len(self._rates) < 2:
            self._rates.append((rate, interrupts_per_s))
            return
        first_rate, first_interrupts = self._rates[1]
        limit = max(_MIN_INTERRUPTS_PER_S, _MORE_INTERRUPTS * first_interrupts)
        if not self._has_warned and rate < _SLOW_SHARE * first_rate and interrupts_per_s > limit:
            self._has_warned = True
            log.warning(
                "%.0f images/s instead of %.0f, as other processes use the CPU cores; threads=1 is slowed down least "
                "(now threads=%d)",
                rate,
                first_rate,
                torch.get_num_threads(),
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._finish_steps(pl_module.device)
        self._lap_s()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_steps(pl_module.device)

    def _finish_steps(self, device: torch.device) -> None:
        """Count the time of the steps that a GPU has still to do."""
        if device.type != "cpu":
            self._lap_s()
            torch.accelerator.synchronize()
            self.train_s += self._lap_s()

    on_test_start = on_train_epoch_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.val_s += self._lap_s()  # so validation within an epoch does not count as waiting for data

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.test_s += self._lap_s()
