"""The learning rate in steps down: kept for a while, then multiplied, again and again."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from imago.errors import ConfigError
from imago.schedule.duration import duration_in_steps


class StepDecay(LambdaLR):
    """Multiplies every learning rate by `factor` after each stretch of the same length.

    Source: He et al. 2016, section 3.4 (arXiv:1512.03385), who divide by 10.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimizer steps of the whole run; not needed.
        steps_per_epoch: optimizer steps in an epoch.
        every_epochs: length of a stretch; may be a fraction. None: see the next.
        every_steps: the same length in optimizer steps; exactly one of the two is given.
        factor: on the learning rate at the end of each stretch, in (0, 1].

    Raises:
        ConfigError: if a stretch would be shorter than a step.
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
                f"schedule.every_epochs={every_epochs} schedule.every_steps={every_steps}: with {steps_per_epoch} "
                "optimizer steps an epoch that is less than one step; give a longer stretch."
            )
        super().__init__(optimizer, lambda step: factor ** (step // every))
