"""Cross-entropy with label smoothing and class weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

from imago.errors import ConfigError
from imago.text import join_names


class CrossEntropy(nn.Module):
    """Compute the mean cross-entropy over a batch.

    Smoothing and weights apply to training only. In evaluation each image counts once, so that the loss does not
    depend on the other images of the batch and can be compared between runs.

    Args:
        label_smoothing: share of each label's mass spread evenly over all classes, in [0, 1). Source: Szegedy et al.
            2016, section 7 (arXiv:1512.00567).
        weight: K weights above 0; or "balanced" for n / (K * n_k), as scikit-learn's `class_weight`. The loss is
            divided by the sum of the weights of the batch, so their scale has no effect.
        class_counts: training images of each of the K classes.

    Attributes:
        total_weight: sum of the weights in the last training batch, (), by which its loss was divided; None without
            weights. `imago.callbacks.mean_gradient` weights the parts of a step by it.

    Raises:
        ConfigError: if the weights do not fit the classes, or are balanced and a class has no images.
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
        self.total_weight: Tensor | None = None
        weights = None if weight is None else torch.tensor(_class_weights(weight, class_counts), dtype=torch.float32)
        self.register_buffer("weight", weights, persistent=False)  # built from the settings

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss () of logits (N, K) for class indices (N,) or probabilities (N, K)."""
        if not self.training:
            return functional.cross_entropy(logits, labels)
        smoothing = self.label_smoothing
        if self.weight is None:
            return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if labels.ndim == 1:
            self.total_weight = self.weight[labels].sum()
            return functional.cross_entropy(logits, labels, self.weight, label_smoothing=smoothing)
        # The mean of torch divides by the number of images for soft labels, by the sum of their weights for hard ones.
        self.total_weight = (labels * self.weight).sum()
        loss_sum = functional.cross_entropy(logits, labels, self.weight, label_smoothing=smoothing, reduction="sum")
        return loss_sum / self.total_weight


def weights_in_order(weight: str | Mapping[Any, float], class_names: Sequence[str]) -> list[float]:
    """Return the numbers of `loss.weight={NAME: NUMBER, ...}` in the order of the classes.

    As quoted text, `'loss.weight="{NAME: NUMBER}"'`, names may have any characters, and 1.10 or null are names.

    Raises:
        ConfigError: a class has no number, or a name is not that of a class.
    """
    if isinstance(weight, str):
        try:
            texts = yaml.load(weight, Loader=yaml.BaseLoader)  # keys and values are text
            numbers = {name: float(value) for name, value in texts.items()}
            if not all(0 < value < math.inf for value in numbers.values()):
                raise ValueError("each number must be above 0 and finite")
        except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"loss.weight={weight} is not {{NAME: NUMBER, ...}}: {reason}.") from error
        return weights_in_order(numbers, class_names)
    by_name = {str(name): value for name, value in weight.items()}  # YAML reads some names as numbers
    missing, unknown = set(class_names) - set(by_name), set(by_name) - set(class_names)
    if missing or unknown:
        fault = f"has no number for {join_names(sorted(missing))}" if missing else ""
        fault += " and " if missing and unknown else ""
        fault += f"names {join_names(sorted(unknown))}, which is no class" if unknown else ""
        raise ConfigError(
            f"loss.weight {fault}; type a number for each of {join_names(class_names, len(class_names))}."
        )
    return [by_name[name] for name in class_names]


def _class_weights(weight: Any, class_counts: Sequence[int] | None) -> list[float]:
    """Return the K class weights that `loss.weight` defines; arguments and errors as in `CrossEntropy`."""
    if isinstance(weight, str):
        if class_counts is None or 0 in class_counts:
            raise ConfigError(
                f"loss.weight=balanced needs training images of every class, and their counts are {class_counts}; "
                "type a number for each class, e.g. loss.weight=[1.0,2.5]."
            )
        return [sum(class_counts) / (len(class_counts) * count) for count in class_counts]
    if class_counts is not None and len(weight) != len(class_counts):
        raise ConfigError(
            f"loss.weight={list(weight)} has {len(weight)} numbers for {len(class_counts)} classes; type one for each."
        )
    return list(weight)
