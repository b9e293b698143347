"""Learning-rate schedules: factors on the learning rate as functions of the step, and the schedulers that apply them.

All schedulers take `optimizer`, whose learning rates they multiply, `total_steps`, the optimizer steps of the whole
run, and `steps_per_epoch`. A duration is given in epochs (may be a fraction) or in optimizer steps; the other is None.
Lightning steps every scheduler after each optimizer step. Step 0 is the first step, `total_steps` - 1 the last one.
"""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from imago.errors import ConfigError
from imago.schedule.duration import duration_in_steps


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, final_factor: float) -> float:
    """Return the factor of a linear warm-up to 1, then a cosine to `final_factor` at the last step.

    The warm-up takes steps 0 to warmup_steps - 1. Source: Goyal et al. 2017, section 2.2 (arXiv:1706.02677); Loshchilov
    and Hutter 2017, eq. 5 (arXiv:1608.03983), without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return _cosine(final_factor, _progress(step, warmup_steps, total_steps))


def warmup_linear(step: int, warmup_steps: int, total_steps: int, final_factor: float) -> float:
    """Return the factor of a linear warm-up to 1, then a line to `final_factor` at the last step.

    Source: Goyal et al. 2017, section 2.2 (arXiv:1706.02677); Smith 2017, figure 2 (arXiv:1506.01186), for the triangle
    that results from a long warm-up.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 1 - (1 - final_factor) * _progress(step, warmup_steps, total_steps)


def one_cycle(step: int, warmup_steps: int, total_steps: int, start_factor: float, final_factor: float) -> float:
    """Return the factor of half a cosine from `start_factor` up to 1, then half a cosine to `final_factor`.

    The factor is 1 at step warmup_steps. Source: Smith and Topin 2018 (arXiv:1708.07120), with cosines instead of lines
    as in fastai (Howard and Gugger 2020, arXiv:2002.04688).
    """
    if step < warmup_steps:
        return _cosine(start_factor, 1 - step / warmup_steps)
    return _cosine(final_factor, _progress(step, warmup_steps, total_steps))


def step_decay(step: int, every_steps: int, factor: float) -> float:
    """Return `factor` to the power of the decays done. Source: He et al. 2016, section 3.4 (arXiv:1512.03385)."""
    return factor ** (step // every_steps)


def constant(step: int) -> float:
    """Return 1 at every step."""
    return 1.0


def _progress(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the share of the steps after the warm-up that are done, in [0, 1]; 1 at the last step and beyond."""
    return min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))


def _cosine(low: float, progress: float) -> float:
    """Return half a cosine from 1 at progress 0 to `low` at progress 1."""
    return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2


class WarmupCosine(LambdaLR):
    """Apply `warmup_cosine`.

    Args:
        warmup_epochs: duration of the warm-up; at most half of the run is used.
        warmup_steps: the same in optimizer steps.
        final_factor: factor at the last step, in [0, 1].
    """

    factor = staticmethod(warmup_cosine)

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        warmup_epochs: float | None,
        warmup_steps: int | None,
        final_factor: float,
    ) -> None:
        warmup = min(duration_in_steps("warmup", warmup_epochs, warmup_steps, steps_per_epoch), total_steps // 2)
        super().__init__(optimizer, lambda step: self.factor(step, warmup, total_steps, final_factor))


class WarmupLinear(WarmupCosine):
    """Apply `warmup_linear`; the arguments are those of `WarmupCosine`."""

    factor = staticmethod(warmup_linear)


class OneCycle(LambdaLR):
    """Apply `one_cycle`; the momentum is left unchanged.

    Args:
        warmup_epochs: duration of the increase; at most half of the run is used.
        warmup_steps: the same in optimizer steps.
        start_factor: factor at the first step, in [0, 1].
        final_factor: factor at the last step, in [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        warmup_epochs: float | None,
        warmup_steps: int | None,
        start_factor: float,
        final_factor: float,
    ) -> None:
        warmup = min(duration_in_steps("warmup", warmup_epochs, warmup_steps, steps_per_epoch), total_steps // 2)
        super().__init__(optimizer, lambda step: one_cycle(step, warmup, total_steps, start_factor, final_factor))


class StepDecay(LambdaLR):
    """Apply `step_decay`.

    Args:
        every_epochs: duration between two decays, at least one step.
        every_steps: the same in optimizer steps.
        factor: factor of each decay, in (0, 1].

    Raises:
        ConfigError: if the duration is shorter than a step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        every_epochs: float | None,
        every_steps: int | None,
        factor: float,
    ) -> None:
        every = duration_in_steps("every", every_epochs, every_steps, steps_per_epoch)
        if every < 1:
            raise ConfigError(
                f"schedule.every_epochs={every_epochs} schedule.every_steps={every_steps} is less than one step of "
                f"{steps_per_epoch} optimizer steps an epoch; set a longer duration, e.g. schedule.every_epochs=1.0."
            )
        super().__init__(optimizer, lambda step: step_decay(step, every, factor))


class Constant(LambdaLR):
    """Keep every learning rate."""

    def __init__(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> None:
        super().__init__(optimizer, constant)


class LrSweep(LambdaLR):
    """Increase the learning rates exponentially, for `tune=lr`. Source: Smith 2017, section 3.3 (arXiv:1506.01186).

    Args:
        num_steps: at least 2.
        range_factor: learning rate at step `num_steps` - 1 divided by that of step 0.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, num_steps: int, range_factor: float
    ) -> None:
        super().__init__(optimizer, lambda step: range_factor ** (step / (num_steps - 1)))


class Plateau(ReduceLROnPlateau):
    """Multiply the learning rates by `factor` after more than `patience` validations without improvement.

    The task calls `step` with the monitored value before the epoch's checkpoints are written, so that a resumed run
    continues with the same learning rate. Lightning would call it after them.

    Args:
        monitor: val/loss or val/acc.
        mode: "min" if lower is better, else "max".
        factor: in (0, 1).
        patience: validations without improvement that are accepted.
        min_factor: lower limit, as a share of the initial learning rate, in [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        monitor: str,
        mode: Any,
        factor: float,
        patience: int,
        min_factor: float,
    ) -> None:
        self.monitor = monitor
        min_lr = [min_factor * group["lr"] for group in optimizer.param_groups]
        # eps=0: with torch's default, a learning rate below 1e-8 is never reduced.
        super().__init__(optimizer, mode=mode, factor=factor, patience=patience, min_lr=min_lr, eps=0.0)

    def step(self, metrics: Any = None, epoch: None = None) -> None:  # type: ignore[override]
        """Process a new monitored value; do nothing without one, as when Lightning calls it after a step."""
        if metrics is not None:
            super().step(metrics)
