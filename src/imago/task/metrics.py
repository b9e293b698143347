"""Accumulate loss, accuracy and the metrics of the config group `metrics` over an epoch, on all ranks."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torchmetrics import Metric

from imago.errors import ConfigError
from imago.instantiate import accepts, build, import_target_or_none
from imago.statistics.groups import ImageDraws
from imago.statistics.intervals import QUANTILES_95, centered

NUM_DRAWS = 200  # of a bootstrap; a metric takes some milliseconds for 10,000 images; our own choice
_MAX_TRIED_CLASSES = 1_000  # in the artificial labels of `build_metric`: (2,000, K) probabilities; our own choice
_MAX_WAITING = 2**22  # logits that wait for the further metrics: 16 MB of float32; our own choice
_TOLERANCE = 1e-6  # of float32: scores that differ by no more are equal
# Computed for every task, or used for other entries of summary.json and of eval's metrics.json.
RESERVED_NAMES = (
    *("loss", "acc", "num_images", "num_correct", "num_left_out", "monitor", "interval_95", "ece", "nll", "top5_acc"),
    *("run", "model", "model_sha256", "data", "data_root", "data_fingerprint", "images_sha256", "split", "tta"),
    *("preprocess", "calibration_temperature", "prediction_sets", "unknown_images"),
)


class LossAndAccuracy:
    """Sum loss and correct predictions over batches; `compute` reduces the sums over all ranks."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.num_images = 0
        self.num_correct: Tensor | int = 0
        self.num_counted = 0  # images with known logits, of which `num_correct` are classified correctly

    def update(self, loss: Tensor, num_images: int, logits: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Add the mean loss, (), of a batch, and logits (N, K) with labels (N,) or soft labels (N, K).

        An empty batch, whose loss is NaN, is not added; without logits a batch does not count for the accuracy.
        """
        if not num_images:
            return
        self.loss_sum = loss.detach().float() * num_images + self.loss_sum
        self.num_images += num_images
        if logits is not None and labels is not None:
            self.num_correct = count_correct(logits.detach(), labels) + self.num_correct
            self.num_counted += len(logits)

    def compute(self, strategy: Strategy) -> dict[str, float]:
        """Return mean loss, accuracy in [0, 1] if it is known, and number of images of all ranks; {} without images."""
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        device = strategy.root_device if is_distributed else "cpu"  # MPS has no float64
        sums = [self.loss_sum, self.num_images, self.num_correct, self.num_counted]
        total = strategy.reduce(torch.tensor(sums, dtype=torch.float64, device=device), reduce_op="sum")
        loss_sum, num_images, num_correct, num_counted = total.tolist()
        if not num_images:
            return {}
        accuracy = {"acc": num_correct / num_counted} if num_counted else {}
        return {"loss": loss_sum / num_images, **accuracy, "num_images": num_images}


class EvaluationMetrics(nn.Module):
    """Loss, accuracy and the configured metrics of a split.

    Args:
        settings: `_target_` of a `torchmetrics.Metric` and its arguments, by the name that it is logged under; None
            leaves a metric out.
        num_classes: K, passed to a parameter of that name.

    Raises:
        ConfigError: a name that is reserved, a target that is not a metric, or a metric that cannot be computed from
            probabilities and labels or is not a single number.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any] | None], num_classes: int) -> None:
        super().__init__()
        self.sums = LossAndAccuracy()
        self._waiting: list[tuple[Tensor, Tensor]] = []  # batches of logits and labels for the further metrics
        self._num_waiting = 0  # logits in them
        self.further: Any = nn.ModuleDict(
            {name: build_metric(name, node, num_classes) for name, node in settings.items() if node is not None}
        )

    def reset(self) -> None:
        """Start a new epoch."""
        self.sums, self._waiting, self._num_waiting = LossAndAccuracy(), [], 0
        for metric in self.further.values():
            metric.reset()

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor, num_images: int) -> None:
        """Add a batch of logits (N, K) and labels (N,); the metrics get float32 probabilities.

        `loss` is the mean, (); `num_images` is N, unless a task predicts something else than one class per image.
        """
        self.sums.update(loss, num_images, logits, labels)
        if len(logits) and self.further:
            self._waiting.append((logits.detach().clone(), labels))  # a CUDA graph overwrites its outputs
            self._num_waiting += logits.numel()
            if self._num_waiting >= _MAX_WAITING:
                self._update_further()

    def _update_further(self) -> None:
        """Pass the waiting batches on as one: metrics of K classes may need K * K operations, whatever its size."""
        if self._waiting:
            logits, labels = map(torch.cat, zip(*self._waiting, strict=True))
            self._waiting, self._num_waiting = [], 0
            probabilities = logits.float().softmax(dim=1)
            for metric in self.further.values():
                metric.update(probabilities, labels)

    def compute(self, strategy: Strategy) -> dict[str, float]:
        """Return the values over all ranks; {} without images."""
        self._update_further()
        result = self.sums.compute(strategy)
        further = {name: float(metric.compute()) for name, metric in self.further.items()} if result else {}
        return result | further


def build_metric(name: str, settings: Mapping[str, Any], num_classes: int) -> Metric:
    """Build a metric, and compute it once for artificial probabilities, to report errors before the training.

    `name` is its key in the config group `metrics`; `num_classes` and errors as in `EvaluationMetrics`.
    """
    if name in RESERVED_NAMES or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"metrics.{name}: the name is taken by another result; choose another one.")
    target = import_target_or_none(settings.get("_target_"))
    filled = {"num_classes": num_classes, "validate_args": False}  # checks of values would synchronize
    filled = {key: value for key, value in filled.items() if key not in settings and accepts(target, key)}
    checks = {"validate_args": True} if "validate_args" in filled else {}
    try:
        metric = build(settings, base=Metric, **(filled | checks))
        labels = torch.arange(min(num_classes, _MAX_TRIED_CLASSES)).repeat(2)
        metric.update(nn.functional.one_hot(labels.roll(1), num_classes).float() * 0.5 + 0.5 / num_classes, labels)
        value = metric.compute()
    except ConfigError as error:
        raise ConfigError(f"metrics.{name}: {error}") from error
    except (TypeError, ValueError, RuntimeError, IndexError) as error:  # torchmetrics' own checks
        raise ConfigError(
            f"metrics.{name}: {settings.get('_target_')} cannot be computed from probabilities (N, {num_classes}) and "
            f"labels (N,): {' '.join(str(error).split())}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"metrics.{name} must be a single number, and its value is {shape}; set its average.")
    return build(settings, base=Metric, **filled)


def compute_with_intervals(
    settings: Mapping[str, Mapping[str, Any] | None],
    logits: np.ndarray,
    labels: np.ndarray,
    known: Mapping[str, Any] = MappingProxyType({}),
    draws: ImageDraws | None = None,
) -> dict[str, Any]:
    """Compute metrics of a whole split, and their 95 % percentile intervals by bootstrap, `centered` at the values.

    As in `macro_intervals`, the draws have further mistakes, so that a metric has an interval without any mistake too.

    `settings` are as in `EvaluationMetrics`, logits float32 (N, K), labels int64 (N,). A metric with name and value of
    a `known` score, which has an interval already, is left out. The same arguments give the same intervals.
    `draws` are those of the bootstrap; None draws single images.

    Returns:
        NAME and NAME_interval_95 of each other metric.
    """
    probabilities, targets = torch.from_numpy(logits).float().softmax(dim=1), torch.from_numpy(labels)
    predicted = logits.argmax(axis=1)
    draws = draws or ImageDraws(labels == predicted)
    result: dict[str, Any] = {}
    for name, node in settings.items():
        if node is None:
            continue
        metric = build_metric(name, node, logits.shape[1])
        value = _compute_once(metric, probabilities, targets)
        if abs(value - known.get(name, math.inf)) <= _TOLERANCE:
            continue
        generator = np.random.default_rng(0)  # the same draws for each metric
        drawn = (draws.draw_labels(labels, predicted, generator) for _ in range(NUM_DRAWS))
        values = np.array([_compute_once(metric, probabilities[draw], torch.from_numpy(own)) for draw, own in drawn])
        interval = np.quantile(centered(values, value), QUANTILES_95)
        low, high = np.array([metric.plot_lower_bound, metric.plot_upper_bound], float)  # None becomes NaN
        if low <= min(values.min(), value) and max(values.max(), value) <= high:  # else they are for plots only
            interval = interval.clip(low, high)
        result |= {name: value, f"{name}_interval_95": interval.tolist()}
    return result


def _compute_once(metric: Metric, probabilities: Tensor, labels: Tensor) -> float:
    metric.reset()
    metric.update(probabilities, labels)
    return float(metric.compute())


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the rows of logits (N, K) whose largest value is at the label, or at the largest soft label: int64 ()."""
    targets = labels if labels.ndim == 1 else labels.argmax(dim=1)
    return (logits.argmax(dim=1) == targets).sum()
