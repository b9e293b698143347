"""Linear warm-up, then a cosine down to the last step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from imago.schedule.duration import duration_in_steps


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, final_factor: float) -> float:
    """Give the factor on the learning rate at a step counted from 0.

    The warm-up takes steps 0 .. warmup_steps-1 and ends at 1; the cosine reaches `final_factor` at the last step,
    total_steps-1. Source: Goyal et al. 2017, section 2.2; Loshchilov and Hutter 2017, eq. 5, without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class WarmupCosine(LambdaLR):
    """The schedule as an object that Lightning steps after every optimizer step.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps in an epoch.
        warmup_epochs: length of the warm-up; may be a fraction, and is cut at half the run. None: see the next.
        final_factor: factor at the last step, in [0, 1].
        warmup_steps: the same length in optimizer steps; exactly one of the two is given.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        warmup_epochs: float | None,
        final_factor: float,
        warmup_steps: int | None = None,
    ) -> None:
        warmup = min(duration_in_steps("warmup", warmup_epochs, warmup_steps, steps_per_epoch), total_steps // 2)
        super().__init__(optimizer, lambda step: warmup_cosine(step, warmup, total_steps, final_factor))
