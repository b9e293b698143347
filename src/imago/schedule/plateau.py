"""The learning rate falls when a watched number has stopped getting better."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau


class Plateau(ReduceLROnPlateau):
    """Multiplies every learning rate by `factor` once `monitor` has not improved for more than `patience` validations.

    The task hands over the number as soon as it is known, before the epoch's checkpoints are written: so a run that is
    resumed from one of them goes on with the learning rate that the uninterrupted run has. Lightning itself would step
    after the checkpoints.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimizer steps of the whole run; not needed.
        steps_per_epoch: optimizer steps in an epoch; not needed.
        monitor: val/loss or val/acc. Not one of training: the sums of an epoch that is resumed in its middle are gone.
        mode: "min" if less of it is better, else "max".
        factor: on the learning rate, in (0, 1).
        patience: validations without improvement that are waited.
        min_factor: of the first learning rate, below which it does not fall, in [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        monitor: str,
        mode: str,
        factor: float,
        patience: int,
        min_factor: float,
    ) -> None:
        self.monitor = monitor
        lowest = [min_factor * group["lr"] for group in optimizer.param_groups]
        # eps: by torch's default the learning rate would not fall once it is below 1e-8.
        super().__init__(optimizer, mode=mode, factor=factor, patience=patience, min_lr=lowest, eps=0.0)  # type: ignore[arg-type]

    def step(self, metrics: Any = None, epoch: None = None) -> None:  # type: ignore[override]
        """Look at a new value of `monitor`; without one, as Lightning calls it after every step, do nothing."""
        if metrics is not None:
            super().step(metrics)
