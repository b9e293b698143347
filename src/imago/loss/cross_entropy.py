"""Cross-entropy, with label smoothing if asked for."""

from torch import Tensor, nn
from torch.nn import functional


class CrossEntropy(nn.Module):
    """Mean cross-entropy over a batch.

    Args:
        label_smoothing: share of each label's mass spread evenly over all classes, in [0, 1); training only.
            Source: Szegedy et al. 2016, section 7 (arXiv:1512.00567).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the scalar loss of logits (N, K) against class indices (N,) or probabilities (N, K)."""
        smoothing = self.label_smoothing if self.training else 0.0
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
