"""Which parameters decay, and the learning rate of each layer."""

import pytest
import torch
from torch import nn
from torchvision import models

from imago.errors import ConfigError
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


def test_tokens_bias_tables_and_layer_scales_do_not_decay():
    with torch.device("meta"):
        vit, swin, convnext = (models.get_model(name) for name in ("vit_b_32", "swin_t", "convnext_tiny"))
    for network in (vit, swin, convnext):
        decaying, steady = parameter_groups(network, 0.05)
        assert not {name for name in names(network, decaying) if "bias" in name or "layer_scale" in name}
        assert not {name for name in names(network, steady) if name.endswith(("proj.weight", "mlp.0.weight"))}
    assert "class_token" in names(vit, parameter_groups(vit, 0.05)[1])
    assert "features.1.0.attn.relative_position_bias_table" in names(swin, parameter_groups(swin, 0.05)[1])
    assert "features.1.0.layer_scale" in names(convnext, parameter_groups(convnext, 0.05)[1])


def rates(network: nn.Module, groups: list[dict]) -> dict[str, float]:
    return {name: group["lr"] for group in groups for name in names(network, group)}


def test_the_learning_rate_of_the_head_is_multiplied():
    network = net()
    groups = parameter_groups(network, 0.05, lr=0.1, head_lr_multiplier=10)
    expected = {"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.1, "1.bias": 0.1, "3.weight": 1.0, "3.bias": 1.0}
    assert rates(network, groups) == pytest.approx(expected)
    assert {group["weight_decay"] for group in groups if "3.weight" in names(network, group)} == {0.05}


def test_the_learning_rate_decreases_from_the_head_to_the_first_layer():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2, bias=False))
    groups = parameter_groups(network, 0.05, lr=0.8, head_lr_multiplier=2, layer_lr_decay=0.5)
    by_layer = {"0": 0.2, "1": 0.4, "2": 0.4, "3": 1.6}
    assert rates(network, groups) == {name: by_layer[name[0]] for name, _ in network.named_parameters()}


def test_frozen_layers_count_in_the_order():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].requires_grad_(False)
    assert rates(network, parameter_groups(network, 0.0, lr=1.0, layer_lr_decay=0.5)) == {
        **dict.fromkeys(("0.weight", "0.bias"), 0.25),
        **dict.fromkeys(("2.weight", "2.bias"), 1.0),
    }


@pytest.mark.parametrize("settings", [{"head_lr_multiplier": 10}, {"layer_lr_decay": 0.5}, {}])
def test_the_first_group_has_the_learning_rate_that_was_typed(settings: dict):
    assert parameter_groups(net(), 0.05, lr=0.1, **settings)[0].get("lr", 0.1) == 0.1


def test_factors_without_a_learning_rate_are_refused():
    with pytest.raises(ConfigError, match="multiply optimizer.lr, which is not set"):
        parameter_groups(net(), 0.05, layer_lr_decay=0.5)


def test_a_shared_parameter_is_counted_once():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    assert [len(group["params"]) for group in parameter_groups(network, 0.05)] == [1, 2]


@pytest.mark.parametrize(("network", "weight_decay"), [(net(), 0.0), (nn.BatchNorm2d(2), 0.05)])
def test_if_nothing_decays_there_is_one_group_as_lbfgs_requires(network: nn.Module, weight_decay: float):
    (group,) = parameter_groups(network, weight_decay)
    assert (len(group["params"]), group["weight_decay"]) == (len(list(network.parameters())), 0.0)
    torch.optim.LBFGS([group])
