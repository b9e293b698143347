"""Cross-entropy against numbers worked out by hand."""

import math

import pytest
import torch

from imago.loss.cross_entropy import CrossEntropy

# Probabilities (0.5, 0.25, 0.25) and (0.1, 0.8, 0.1).
LOGITS = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log() + 3.0
LABELS = torch.tensor([0, 1])
PLAIN = -(math.log(0.5) + math.log(0.8)) / 2
EVEN = -(math.log(0.5 * 0.25 * 0.25) + math.log(0.1 * 0.8 * 0.1)) / 3 / 2  # the target with all mass spread evenly


def test_it_is_the_mean_of_minus_the_log_probability_of_the_label():
    assert CrossEntropy()(LOGITS, LABELS).item() == pytest.approx(PLAIN)


def test_training_smooths_the_labels():
    loss = CrossEntropy(label_smoothing=0.3).train()
    assert loss(LOGITS, LABELS).item() == pytest.approx(0.7 * PLAIN + 0.3 * EVEN)


def test_evaluation_does_not_smooth():
    loss = CrossEntropy(label_smoothing=0.3).eval()
    assert loss(LOGITS, LABELS).item() == pytest.approx(PLAIN)


def test_without_being_asked_nothing_is_smoothed():
    assert CrossEntropy().train()(LOGITS, LABELS).item() == pytest.approx(PLAIN)


def test_soft_labels_weigh_the_classes():
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    expected = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25) + math.log(0.8)) / 2
    assert CrossEntropy()(LOGITS, soft).item() == pytest.approx(expected)
