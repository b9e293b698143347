"""Cross-entropy against values computed by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from imago.errors import ConfigError
from imago.loss.cross_entropy import CrossEntropy, weights_in_order

# Probabilities (0.5, 0.25, 0.25) and (0.1, 0.8, 0.1).
LOGITS = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log() + 3.0
LABELS = torch.tensor([0, 1])
HARD_LABEL_LOSS = -(math.log(0.5) + math.log(0.8)) / 2
UNIFORM_TARGET_LOSS = -(math.log(0.5 * 0.25 * 0.25) + math.log(0.1 * 0.8 * 0.1)) / 3 / 2  # all mass spread evenly


@pytest.mark.parametrize(
    ("smoothing", "is_training", "expected"),
    [
        (0.0, False, HARD_LABEL_LOSS),
        (0.0, True, HARD_LABEL_LOSS),
        (0.3, True, 0.7 * HARD_LABEL_LOSS + 0.3 * UNIFORM_TARGET_LOSS),
        (0.3, False, HARD_LABEL_LOSS),
    ],
)
def test_it_is_the_mean_negative_log_probability_of_labels_smoothed_in_training_only(smoothing, is_training, expected):
    loss = CrossEntropy(label_smoothing=smoothing).train(is_training)
    assert loss(LOGITS, LABELS).item() == pytest.approx(expected)


def test_soft_labels_weight_the_classes():
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    expected = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25) + math.log(0.8)) / 2
    assert CrossEntropy()(LOGITS, soft).item() == pytest.approx(expected)


# Class weights


def slow_weighted(logits: Tensor, soft: Tensor, weight: list[float], smoothing: float) -> float:
    """Return the loss summed in a loop; the mean is over the weight of each label before smoothing."""
    total, mass = 0.0, 0.0
    for row, label in zip(logits.double().log_softmax(dim=1).tolist(), soft.tolist(), strict=True):
        for log_probability, share, class_weight in zip(row, label, weight, strict=True):
            total -= class_weight * ((1 - smoothing) * share + smoothing / len(row)) * log_probability
            mass += class_weight * share
    return total / mass


WEIGHT = [0.5, 2.0, 4.0, 1.0]


def many(count: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, hard labels and soft labels of four classes."""
    random = torch.Generator().manual_seed(0)
    logits, soft = torch.randn(count, 4, generator=random), torch.rand(count, 4, generator=random)
    return logits, soft.argmax(dim=1), soft / soft.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_weighted_loss_equals_the_slow_reference_and_weights_are_not_rounded_under_autocast(smoothing, is_autocast):
    weight = [0.3, 1.7, 2.9, 0.123]  # none of which bf16 holds
    logits, hard, soft = many(500)
    loss = CrossEntropy(smoothing, weight).train()
    one_hot = torch.nn.functional.one_hot(hard, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        by_index, by_one_hot, by_soft = (loss(logits, labels) for labels in (hard, one_hot, soft))
    assert by_one_hot.item() == pytest.approx(by_index.item(), rel=1e-5)
    assert by_index.item() == pytest.approx(slow_weighted(logits, one_hot, weight, smoothing), rel=1e-5)
    assert by_soft.item() == pytest.approx(slow_weighted(logits, soft, weight, smoothing), rel=1e-5)


@pytest.mark.parametrize("weight", [[1.0] * 4, [7.0] * 4, "balanced"])
def test_equal_weights_are_no_weights_for_soft_labels_too(weight):
    logits, hard, soft = many()
    loss, plain = CrossEntropy(0.1, weight, [30, 30, 30, 30]).train(), CrossEntropy(0.1).train()
    for labels in (hard, soft):
        assert loss(logits, labels).item() == pytest.approx(plain(logits, labels).item(), rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat(range(4), [60, 30, 9, 1])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert CrossEntropy(weight="balanced", class_counts=[60, 30, 9, 1]).weight.tolist() == pytest.approx(expected)


def test_evaluation_counts_every_image_once():
    logits, hard, soft = many()
    loss = CrossEntropy(weight=WEIGHT).eval()
    for labels in (hard, soft):
        assert loss(logits, labels).item() == pytest.approx(CrossEntropy().eval()(logits, labels).item())


def test_weights_are_not_saved_and_move_with_the_module():
    loss = CrossEntropy(weight=WEIGHT)
    assert loss.state_dict() == {}
    assert loss.to("meta").weight.device.type == "meta"


@pytest.mark.parametrize(
    ("weight", "counts", "text"),
    [
        ("balanced", [3, 0], "loss.weight=balanced needs training images of every class, and their counts are [3, 0]"),
        ("balanced", None, "loss.weight=balanced needs training images of every class, and their counts are None"),
        ([1.0, 2.0, 3.0], [3, 4], "loss.weight=[1.0, 2.0, 3.0] has 3 numbers for 2 classes; type one for each."),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(weight, counts, text: str):
    with pytest.raises(ConfigError) as error:
        CrossEntropy(weight=weight, class_counts=counts)
    assert str(error.value).startswith(text)


NAMES = ("0", "1", "10", "2")  # as folders are sorted


def test_weights_by_name_are_sorted_as_the_classes_are():
    assert weights_in_order({0: 1.0, 1: 2.0, 2: 3.0, 10: 4.0}, NAMES) == [1.0, 2.0, 4.0, 3.0]
    assert weights_in_order({"bee": 5, "ant": 1}, ("ant", "bee")) == [1, 5]
    names = ("1.10", "null", "cat (tame)", "\u00e9")
    assert weights_in_order("{1.10: 2, null: 3, cat (tame): 1.5, \u00e9: 4}", names) == [2, 3, 1.5, 4]


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        ({0: 1, 1: 1, 2: 1}, "loss.weight has no number for 10; type a number for each of 0, 1, 10, 2."),
        ("{0: 1, 1: x}", "loss.weight={0: 1, 1: x} is not {NAME: NUMBER, ...}: could not convert"),
        ("{0: -1}", "loss.weight={0: -1} is not {NAME: NUMBER, ...}: each number must be above 0 and finite"),
        ("{0", "loss.weight={0 is not {NAME: NUMBER, ...}: while parsing"),
        ({0: 1, 1: 1, 2: 1, 10: 1, 3: 1}, "loss.weight names 3, which is no class; type"),
        ({0: 1, 1: 1, 2: 1, "ten": 1}, "loss.weight has no number for 10 and names ten, which is no class; type"),
    ],
)
def test_weights_by_name_that_do_not_fit_the_classes_are_refused(weight: dict, fault: str):
    with pytest.raises(ConfigError) as error:
        weights_in_order(weight, NAMES)
    assert str(error.value).startswith(fault)
