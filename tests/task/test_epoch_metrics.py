"""Loss and accuracy of a split: each image counts once, in any batch and on any rank."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from imago.task.epoch_metrics import EpochMetrics, count_correct

ONE_DEVICE = SingleDeviceStrategy(device=torch.device("cpu"))


def logits_for(*classes: int) -> Tensor:
    """Return logits of three classes that are largest at `classes`."""
    return 5 * torch.nn.functional.one_hot(torch.tensor(classes), 3).float() - 1


def test_predictions_are_counted_by_the_largest_logit():
    assert count_correct(logits_for(0, 1, 2, 2), torch.tensor([0, 1, 1, 2])).item() == 3


def test_soft_labels_count_by_their_largest_class():
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    assert count_correct(logits_for(0, 1), soft).item() == 1


def test_batches_of_different_size_count_by_their_images():
    score = EpochMetrics()
    score.update(torch.tensor(1.0), logits_for(0, 0, 0), torch.tensor([0, 0, 1]))
    score.update(torch.tensor(5.0), logits_for(2), torch.tensor([2]))
    assert score.result(ONE_DEVICE) == {"loss": pytest.approx(2.0), "acc": 0.75, "num_images": 4}


def test_an_empty_split_has_no_result():
    assert EpochMetrics().result(ONE_DEVICE) == {}


def test_the_sums_of_all_ranks_are_added():
    others = torch.tensor([9.0, 1.0, 2.0])  # loss sum, correct predictions and images of another rank
    ranks = SimpleNamespace(
        root_device=torch.device("cpu"),
        reduce=lambda sums, reduce_op: {"sum": sums + others}[reduce_op],
    )
    score = EpochMetrics()
    score.update(torch.tensor(1.0), logits_for(0), torch.tensor([0]))
    assert score.result(ranks) == {"loss": pytest.approx(10 / 3), "acc": pytest.approx(2 / 3), "num_images": 3}


def test_the_graph_of_a_training_loss_is_not_kept():
    score = EpochMetrics()
    score.update(torch.tensor(1.0, requires_grad=True) * 2, logits_for(0), torch.tensor([0]))
    assert not score.loss_sum.requires_grad


def test_small_losses_still_count_after_many_batches():
    score = EpochMetrics()
    for _ in range(2000):
        score.update(torch.tensor(0.125), logits_for(0).expand(100, 3), torch.zeros(100, dtype=torch.int64))
    assert score.result(ONE_DEVICE) == {"loss": pytest.approx(0.125, rel=1e-6), "acc": 1, "num_images": 200_000}
