"""A pruned network has fewer channels, and is rebuilt from its settings and the new shapes alone."""

import copy
import sys
from typing import Any

import pytest
import torch
import torch_pruning
from torch import nn

from imago.errors import ConfigError
from imago.model.adapt import build_network
from imago.model.layers import head_names
from imago.model.pruning import count_multiply_adds, prune, shrink

LIBRARY_SIZE_PX = 96
OWN: dict[str, dict[str, Any]] = {
    "simple_cnn.SimpleCNN": {"hidden_features": 64},
    "small_resnet.SmallResNet": {},
    "cifar_quick.CifarQuick": {},
    "whitened_resnet.WhitenedResNet": {"widths": [16, 32], "logit_scale": 0.1},
}
TORCHVISION = ("resnet18", "mobilenet_v3_small", "squeezenet1_0", "efficientnet_b0", "convnext_tiny")
TIMM = ("resnet10t", "lcnet_050", "mobilenetv4_conv_small", "convnext_atto")


def library_net(kind: str, name: str) -> dict[str, Any]:
    return {"_target_": f"imago.model.{kind.lower()}_net.{kind}Net", "name": name}


NETWORKS = [
    *(pytest.param({"_target_": f"imago.model.{name}", **arguments}, 32, id=name) for name, arguments in OWN.items()),
    *(
        pytest.param(library_net(kind, name), LIBRARY_SIZE_PX, id=name, marks=pytest.mark.slow)
        for kind, names in {"Torchvision": TORCHVISION, "Timm": TIMM}.items()
        for name in names
    ),
]
SIMPLE = {"_target_": "imago.model.simple_cnn.SimpleCNN", "hidden_features": 64}


def random_network(settings: dict[str, Any], size: int) -> Any:
    """Build a network whose norms do not start as the identity."""
    torch.manual_seed(0)
    net = build_network(settings, 10, size).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize(("settings", "size"), NETWORKS)
def test_the_rebuilt_network_has_the_outputs_and_layers_of_the_pruned_one(settings: dict[str, Any], size: int):
    net = random_network(settings, size)
    before = copy.deepcopy(net.state_dict())
    pruned, shapes = prune(net, 0.5, size)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    rebuilt = build_network({**settings, "pruned_shapes": shapes}, 10, size).eval()
    rebuilt.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(rebuilt(images), pruned(images))
    assert repr(rebuilt) == repr(pruned)
    assert sum(map(torch.numel, rebuilt.parameters())) < 0.55 * sum(map(torch.numel, net.parameters()))
    heads = [getattr(rebuilt, "body", rebuilt).get_submodule(name) for name in head_names(rebuilt)]
    assert [head.weight.shape[0] for head in heads] == [10] * len(heads)
    assert [p.requires_grad for p in rebuilt.parameters()] == [p.requires_grad for p in net.parameters()]


@pytest.mark.parametrize(("ratio", "widths"), [(0.5, [16, 32, 32]), (0.3, [24, 48, 48]), (0.99, [8, 8, 8])])
def test_the_nearest_multiple_of_8_channels_remains(ratio: float, widths: list[int]):
    pruned, _ = prune(random_network(SIMPLE, 32), ratio, 32)
    assert [pruned.features[0].out_channels, pruned.features[3].out_channels, pruned.classifier[1].out_features] == [
        *widths
    ]


def test_the_weights_that_remain_are_those_with_the_largest_norms():
    net = random_network(SIMPLE, 32)
    pruned, _ = prune(net, 0.5, 32)
    # `classifier.1` is pruned with the inputs of the head, and scored by the weights of both.
    outgoing, incoming = net.classifier[4].weight.norm(dim=0), net.classifier[1].weight.norm(dim=1)
    kept = [index for index, bias in enumerate(net.classifier[1].bias) if bias in pruned.classifier[1].bias]
    removed = [index for index in range(64) if index not in kept]
    assert torch.equal(pruned.classifier[4].weight, net.classifier[4].weight[:, kept])
    scores = outgoing.square() / outgoing.square().mean() + incoming.square() / incoming.square().mean()
    assert (len(kept), scores[kept].mean() > scores[removed].mean()) == (32, True)


def test_pruning_is_the_same_each_time_and_can_be_repeated():
    net = random_network(SIMPLE, 32)
    first, shapes = prune(net, 0.5, 32)
    again, _ = prune(net, 0.5, 32)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    second, fewer = prune(first, 0.5, 32)
    rebuilt = build_network({**SIMPLE, "pruned_shapes": {**shapes, **fewer}}, 10, 32)
    rebuilt.load_state_dict(second.state_dict())
    assert rebuilt.features[0].out_channels == 8


def test_multiply_adds_are_those_of_the_layers():
    net = random_network(SIMPLE, 32)
    by_hand = 32 * 32 * 32 * 3 * 9 + 16 * 16 * 64 * 32 * 9 + 4096 * 64 + 64 * 10
    assert count_multiply_adds(net, 32) == by_hand
    counted = torch_pruning.utils.count_ops_and_params(net, torch.zeros(1, 3, 32, 32))[0]
    assert count_multiply_adds(net, 32) == pytest.approx(counted, rel=0.05)


def test_a_gray_and_frozen_pruned_network_is_built_as_one_that_is_not_pruned():
    _, shapes = prune(random_network({**SIMPLE, "in_channels": 1}, 32), 0.5, 32)
    settings = {**SIMPLE, "in_channels": 1, "freeze": "features.*", "pruned_shapes": shapes}
    net = build_network(settings, 10, 32)
    assert not net.features[0].weight.requires_grad
    assert net.classifier[1].weight.requires_grad
    colored = torch.randn(2, 3, 32, 32)
    gray = (colored * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(net(colored), net(gray))


class Attending(nn.Module):
    """A network with attention."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, num_classes)


class Fixed(nn.Sequential):
    """A network that reshapes to a fixed number of channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Conv2d(3, 16, 3), nn.Unflatten(1, (2, 8)), nn.Flatten(), nn.LazyLinear(num_classes))
        self(torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Attending(3), "it has MultiheadAttention, and only convolutional networks can be pruned"),
        (Fixed(3), "its layers depend on each other in a way that cannot be pruned"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 3)), "remove .* type a larger ratio"),
    ],
)
def test_a_network_that_cannot_be_pruned_is_refused(net: nn.Module, message: str):
    with pytest.raises(ConfigError, match=message):
        prune(net, 0.5, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("Torchvision", "vit_b_16"), ("Timm", "efficientvit_b0")])
def test_networks_of_the_libraries_that_cannot_be_pruned_are_refused(kind: str, name: str):
    net = build_network(library_net(kind, name), 10, 224)
    with pytest.raises(ConfigError, match="cannot be pruned|can be pruned"):
        prune(net, 0.5, 224)


@pytest.mark.parametrize(
    "shapes",
    [
        {"features.0.weight": [64, 3, 3, 3]},  # larger
        {"features.0.weight": [0, 3, 3, 3]},
        {"features.0.weight": [True, 3, 3, 3]},
        {"features.0.weight": [16, 3]},
        {"features.0.weight": 16},
        {"features.9.weight": [1]},
        {"forward": []},
        {"__class__.__init__": [1]},
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(shapes: Any):
    with pytest.raises(ConfigError, match="pruned_shapes: .* is no tensor of SimpleCNN"):
        shrink(random_network(SIMPLE, 32), shapes)


def test_shapes_that_fit_no_network_together_are_refused():
    with pytest.raises(ConfigError, match="SimpleCNN cannot take images of 32 px"):
        build_network({**SIMPLE, "pruned_shapes": {"features.0.weight": [16, 3, 3, 3]}}, 10, 32)


def test_no_package_is_needed_to_rebuild(monkeypatch: pytest.MonkeyPatch):
    _, shapes = prune(random_network(SIMPLE, 32), 0.5, 32)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert build_network({**SIMPLE, "pruned_shapes": shapes}, 10, 32).features[0].out_channels == 16
