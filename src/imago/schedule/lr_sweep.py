"""Learning rates from low to high, for `tune=lr`: the same share more at each step."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class LrSweep(LambdaLR):
    """Multiplies the learning rates by the same factor at each step.

    Source: Smith 2017, section 3.3 (arXiv:1506.01186), in even steps of the logarithm.

    Args:
        optimizer: whose learning rates grow.
        total_steps: optimizer steps of the whole run; not needed.
        steps_per_epoch: optimizer steps in an epoch; not needed.
        num_steps: at least 2.
        range_factor: the learning rate of step `num_steps` over that of the first.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, num_steps: int, range_factor: float
    ) -> None:
        super().__init__(optimizer, lambda step: range_factor ** (step / (num_steps - 1)))
