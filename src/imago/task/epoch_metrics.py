"""Loss and accuracy of a split as three running sums: no metric objects, no host sync until someone asks."""

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class EpochMetrics:
    """Sums over batches on the device; `result` reads them, over all ranks."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.num_right: Tensor | int = 0
        self.num_images = 0

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), logits (N, K) and labels (N,) or soft labels (N, K)."""
        if not len(logits):  # a rank may have nothing in its last batch, and the mean of nothing is no number
            return
        self.loss_sum = loss.detach() * len(logits) + self.loss_sum
        self.num_right = count_right(logits, labels) + self.num_right
        self.num_images += len(logits)

    def result(self, strategy: Strategy) -> dict[str, float]:
        """Give mean loss, accuracy in [0, 1] and the number of images; an empty split gives an empty dict."""
        # On one device the sums stay here: Apple's cannot hold float64.
        device = (
            strategy.root_device if torch.distributed.is_available() and torch.distributed.is_initialized() else "cpu"
        )
        sums = torch.tensor([self.loss_sum, self.num_right, self.num_images], dtype=torch.float64, device=device)
        loss, right, images = strategy.reduce(sums, reduce_op="sum").tolist()
        return {"loss": loss / images, "acc": right / images, "num_images": images} if images else {}


def count_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the rows whose largest logit is the label (of soft labels, the largest one): int64 ()."""
    targets = labels if labels.ndim == 1 else labels.argmax(dim=1)
    return (logits.argmax(dim=1) == targets).sum()
