"""Learning-rate schedules: factors on the learning rate as functions of the step, and the schedulers that apply them.

All schedulers take `optimizer`, whose learning rates they multiply, and those that need them `total_steps`, the
optimizer steps of the whole run, and `steps_per_epoch`. A duration is given in epochs (may be a fraction) or in
optimizer steps; the other is None.
Lightning steps every scheduler after each optimizer step. Step 0 is the first step, `total_steps` - 1 the last one.
"""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from imago.errors import ConfigError
from imago.schedule.duration import duration_in_steps


def cosine(final_factor: float, progress: float) -> float:
    """Return the factor of a cosine decay from 1 at progress 0 to `final_factor` at progress 1."""
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


def linear(final_factor: float, progress: float) -> float:
    """Return the factor of a linear decay from 1 at progress 0 to `final_factor` at progress 1."""
    return 1 - (1 - final_factor) * progress


def warmup_factor(
    step: int,
    warmup_steps: int,
    total_steps: int,
    final_factor: float,
    start_factor: float | None = None,
    decay: Callable[[float, float], float] = cosine,
) -> float:
    """Return a factor that increases to 1 at step `warmup_steps`, then decreases to `final_factor` at the last step.

    After the last step it stays. `start_factor` is the factor at step 0, the start of half a cosine; with None the
    factor increases along a line, which would be 0 at step -1.
    """
    if step < warmup_steps:
        factor = (step + 1) / (warmup_steps + 1)
        return factor if start_factor is None else cosine(start_factor, 1 - step / warmup_steps)
    return decay(final_factor, min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)))


class _StepFactor(LambdaLR):
    """Multiply the learning rates by a function of the step."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the step of the state, with the rates of this schedule: it may be longer than the saved one."""
        super().load_state_dict(state_dict)
        factors = zip(self.base_lrs, self.lr_lambdas, strict=True)
        self._last_lr = [base_lr * factor(self.last_epoch) for base_lr, factor in factors]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class WarmupCosine(_StepFactor):
    """Increase the learning rates linearly, then decrease them along half a cosine.

    Source: Goyal et al. 2017, section 2.2 (arXiv:1706.02677); Loshchilov and Hutter 2017, eq. 5 (arXiv:1608.03983),
    without restarts.

    Args:
        warmup_epochs: duration of the warmup; at most half of the run is used.
        warmup_steps: the same in optimizer steps.
        final_factor: factor at the last step, in [0, 1].
        start_factor: factor at the first step, in [0, 1]; only in `OneCycle`.
    """

    decay = staticmethod(cosine)

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        warmup_epochs: float | None,
        warmup_steps: int | None,
        final_factor: float,
        start_factor: float | None = None,
    ) -> None:
        warmup = min(duration_in_steps("warmup", warmup_epochs, warmup_steps, steps_per_epoch), total_steps // 2)
        decay = self.decay
        super().__init__(
            optimizer, lambda step: warmup_factor(step, warmup, total_steps, final_factor, start_factor, decay)
        )


class WarmupLinear(WarmupCosine):
    """Increase and decrease the learning rates linearly.

    Source: Goyal et al. 2017, section 2.2 (arXiv:1706.02677); Smith 2017, figure 2 (arXiv:1506.01186), for the triangle
    that results from a long warmup.
    """

    decay = staticmethod(linear)


class OneCycle(WarmupCosine):
    """Increase and decrease the learning rates along cosines; the momentum is left unchanged.

    Source: Smith and Topin 2018 (arXiv:1708.07120), with cosines instead of lines as in fastai (Howard and Gugger 2020,
    arXiv:2002.04688).
    """


class StepDecay(_StepFactor):
    """Multiply the learning rates by `factor` at regular intervals. Source: He et al. 2016 (arXiv:1512.03385).

    Args:
        every_epochs: duration between two decays, at least one step.
        every_steps: the same in optimizer steps.
        factor: of each decay, in (0, 1]; 0.1 divides by ten.

    Raises:
        ConfigError: if the duration is shorter than a step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: int,
        every_epochs: float | None,
        every_steps: int | None,
        factor: float,
    ) -> None:
        steps_between_decays = duration_in_steps("every", every_epochs, every_steps, steps_per_epoch)
        if steps_between_decays < 1:
            raise ConfigError(
                f"schedule.every_epochs={every_epochs} schedule.every_steps={every_steps} is less than one step of "
                f"{steps_per_epoch} optimizer steps an epoch; set a longer duration, e.g. schedule.every_epochs=1.0."
            )
        super().__init__(optimizer, lambda step: factor ** (step // steps_between_decays))


class Constant(_StepFactor):
    """Keep the learning rates constant."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, lambda step: 1.0)


class LrSweep(_StepFactor):
    """Increase the learning rates exponentially, for `tune=lr`. Source: Smith 2017, section 3.3 (arXiv:1506.01186).

    Args:
        num_steps: steps of the range test, at least 2.
        range_factor: learning rate at step `num_steps` - 1 divided by that of step 0.
    """

    def __init__(self, optimizer: Optimizer, num_steps: int, range_factor: float) -> None:
        super().__init__(optimizer, lambda step: range_factor ** (step / (num_steps - 1)))


class Plateau(ReduceLROnPlateau):
    """Multiply the learning rates by `factor` after more than `patience` validations without improvement.

    The task calls `step` with the monitored value before the epoch's checkpoints are written, so that a resumed run
    continues with the same learning rate. Lightning would call it after them.

    Args:
        monitor: "val/loss" or "val/acc".
        mode: "min" if lower is better, else "max".
        factor: of each reduction, in (0, 1).
        patience: validations without improvement that are accepted.
        min_factor: lower limit, as a share of the initial learning rate, in [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer,
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
