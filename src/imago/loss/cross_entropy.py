"""Cross-entropy, with label smoothing and class weights if asked for."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from imago.errors import ConfigError


class CrossEntropy(nn.Module):
    """Mean cross-entropy over a batch.

    Smoothing and weights are for training only. In evaluation each image counts once, so that the loss does not
    depend on which images share a batch and can be compared between runs.

    Args:
        label_smoothing: share of each label's mass spread evenly over all classes, in [0, 1).
            Source: Szegedy et al. 2016, section 7 (arXiv:1512.00567).
        weight: how much an image of each class counts: K numbers above 0, or "balanced" for n / (K * n_k), as
            scikit-learn's `class_weight`; the mean is over weights, so their scale has no effect. None is no weights.
        class_counts: training images of each of the K classes.

    Raises:
        ConfigError: if the weights do not fit the classes, or a class to be balanced has no images.
    """

    weight: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        weight: str | Sequence[float] | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        weights = None if weight is None else torch.tensor(class_weights(weight, class_counts), dtype=torch.float32)
        self.register_buffer("weight", weights, persistent=False)  # the settings tell them

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the scalar loss of logits (N, K) against class indices (N,) or probabilities (N, K)."""
        if not self.training:
            return functional.cross_entropy(logits, labels)
        loss = functional.cross_entropy(
            logits,
            labels,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction="mean" if self.weight is None or labels.ndim == 1 else "sum",
        )
        # torch divides by the weights of hard labels, but by the number of images where labels are soft.
        return loss if self.weight is None or labels.ndim == 1 else loss / (labels * self.weight).sum()


def class_weights(weight: str | Sequence[float], class_counts: Sequence[int] | None) -> list[float]:
    """Give the K numbers that `loss.weight` stands for.

    Args:
        weight: "balanced", or K numbers above 0.
        class_counts: training images of each class; None if they are not known.

    Raises:
        ConfigError: if it is neither, has another length, or a class to be balanced has no images.
    """
    if isinstance(weight, str):
        if weight != "balanced":
            raise ConfigError(f"loss.weight={weight} is not one of null, balanced; or give a number for each class.")
        if class_counts is None or 0 in class_counts:
            raise ConfigError(
                f"loss.weight=balanced needs training images of every class, and their counts are {class_counts}; "
                "give a number for each class instead."
            )
        return [sum(class_counts) / (len(class_counts) * count) for count in class_counts]
    if class_counts is not None and len(weight) != len(class_counts):
        raise ConfigError(
            f"loss.weight={list(weight)} has {len(weight)} numbers for {len(class_counts)} classes; give one for each."
        )
    return list(weight)
