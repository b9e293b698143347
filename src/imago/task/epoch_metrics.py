"""Loss and accuracy of a split as running sums on the device, read by the host once per epoch."""

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class EpochMetrics:
    """Sum loss and correct predictions over batches; `result` reduces the sums over all ranks."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.num_correct: Tensor | int = 0
        self.num_images = 0

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), logits (N, K) and labels (N,) or soft labels (N, K)."""
        if not len(logits):  # the last batch of a rank may be empty, and its mean loss is NaN
            return
        self.loss_sum = loss.detach() * len(logits) + self.loss_sum
        self.num_correct = count_correct(logits, labels) + self.num_correct
        self.num_images += len(logits)

    def result(self, strategy: Strategy) -> dict[str, float]:
        """Return mean loss, accuracy in [0, 1] and number of images over all ranks; {} without images."""
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        device = strategy.root_device if is_distributed else "cpu"  # MPS has no float64
        sums = torch.tensor([self.loss_sum, self.num_correct, self.num_images], dtype=torch.float64, device=device)
        loss, right, images = strategy.reduce(sums, reduce_op="sum").tolist()
        return {"loss": loss / images, "acc": right / images, "num_images": images} if images else {}


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the rows of logits (N, K) that are largest at the label, or at the largest soft label: int64 ()."""
    targets = labels if labels.ndim == 1 else labels.argmax(dim=1)
    return (logits.argmax(dim=1) == targets).sum()
