"""Which parameters decay."""

import pytest
import torch
from torch import nn

from imago.optimizer.groups import parameter_groups


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def names(network: nn.Module, group: dict) -> set[str]:
    wanted = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in network.named_parameters() if id(parameter) in wanted}


def test_weights_of_layers_decay_and_norms_and_biases_do_not():
    network = net()
    decaying, steady = parameter_groups(network, 0.05)
    assert (decaying["weight_decay"], steady["weight_decay"]) == (0.05, 0.0)
    assert names(network, decaying) == {"0.weight", "3.weight"}
    assert names(network, steady) == {"0.bias", "1.weight", "1.bias", "3.bias"}


def test_frozen_parameters_are_left_out():
    network = net()
    network[0].requires_grad_(False)
    groups = parameter_groups(network, 0.05)
    assert set().union(*(names(network, group) for group in groups)) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_an_empty_group_is_left_out():
    (group,) = parameter_groups(nn.Linear(2, 2, bias=False), 0.05)
    assert group["weight_decay"] == 0.05
    (group,) = parameter_groups(nn.BatchNorm2d(2), 0.05)
    assert group["weight_decay"] == 0.0


def test_a_shared_parameter_is_counted_once():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    assert [len(group["params"]) for group in parameter_groups(network, 0.05)] == [1, 2]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_without_gradient_shrinks_only_what_decays(optimizer: type):
    network = net()
    nn.init.ones_(network[3].bias)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer(parameter_groups(network, 0.5), lr=0.1, weight_decay=0.5).step()
    shrunk = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert shrunk == {"0.weight", "3.weight"}
    torch.testing.assert_close(network[3].weight, before["3.weight"] * 0.95)
