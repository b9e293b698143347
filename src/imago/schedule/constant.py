"""The learning rate as it is, from the first step to the last."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Constant(LambdaLR):
    """Keeps every learning rate; takes the same facts as the other schedules and needs none of them."""

    def __init__(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> None:
        super().__init__(optimizer, lambda step: 1.0)
