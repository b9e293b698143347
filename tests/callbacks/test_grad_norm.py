"""The length of the gradient: of all weights together, on logging steps only."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from imago.callbacks.grad_norm import GradNorm


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    """Two weights with a gradient, one frozen."""
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    weights[0].grad, weights[1].grad = torch.tensor([1.0, 2.0]), torch.tensor([-2.0])
    return torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:]}], lr=0.1)


def test_the_norm_is_that_of_all_gradients_on_the_steps_that_log(optimizer: torch.optim.Optimizer):
    logged = []
    module = SimpleNamespace(log_step=lambda values, step: logged.append((values, step)))
    for step in range(6):
        trainer = SimpleNamespace(global_step=step, log_every_n_steps=3)
        GradNorm().on_before_optimizer_step(trainer, module, optimizer)
    assert logged == [({"grad_norm": 3.0}, 2), ({"grad_norm": 3.0}, 5)]
