"""One cycle over the whole run: half a cosine up to the learning rate, half a cosine down to almost nothing."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from imago.schedule.duration import duration_in_steps


def one_cycle(step: int, warmup_steps: int, total_steps: int, start_factor: float, final_factor: float) -> float:
    """Give the factor on the learning rate at a step counted from 0.

    It is `start_factor` at step 0, 1 at step warmup_steps and `final_factor` at the last step, total_steps-1. Source:
    Smith and Topin 2018 (arXiv:1708.07120), with cosines for lines as in fastai (Howard and Gugger 2020).
    """
    if step < warmup_steps:
        low, progress = start_factor, 1 - step / warmup_steps
    else:
        low, progress = final_factor, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return low + (1 - low) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class OneCycle(LambdaLR):
    """The schedule as an object that Lightning steps after every optimizer step; the momentum stays as it is.

    Args:
        optimizer: whose learning rates are the peak of the cycle.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps in an epoch.
        warmup_epochs: length of the way up; may be a fraction, and is cut at half the run. None: see the next.
        warmup_steps: the same length in optimizer steps; exactly one of the two is given.
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
        climb = min(duration_in_steps("climb", warmup_epochs, warmup_steps, steps_per_epoch), total_steps // 2)
        super().__init__(optimizer, lambda step: one_cycle(step, climb, total_steps, start_factor, final_factor))
