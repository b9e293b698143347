"""The order of layers, for architectures that are built in different ways."""

import pytest
import torch
from torch import nn

from imago.model.layers import layers_in_order
from imago.model.simple_cnn import SimpleCNN
from imago.model.small_resnet import SmallResNet
from imago.model.torchvision_net import TorchvisionNet


def first_names(net: nn.Module) -> list[str]:
    """Return the name of the first parameter of each layer; check that each parameter is in one layer."""
    body = getattr(net, "body", net)
    names = {id(parameter): name for name, parameter in body.named_parameters()}
    layers = layers_in_order(net)
    found = [id(parameter) for layer in layers for parameter in layer]
    assert sorted(found) == sorted(names)  # each once
    return [names[id(layer[0])] for layer in layers]


def meta(name: str) -> TorchvisionNet:
    with torch.device("meta"):
        return TorchvisionNet(5, 224, name)


def test_a_resnet_has_a_stem_its_blocks_and_a_head():
    blocks = [f"layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert first_names(meta("resnet18")) == ["conv1.weight", *blocks, "fc.weight"]


def test_a_vit_has_its_embeddings_in_the_first_layer_and_its_last_norm_in_the_last_block():
    net = meta("vit_b_16")
    blocks = [f"encoder.layers.encoder_layer_{block}.ln_1.weight" for block in range(12)]
    assert first_names(net) == ["class_token", *blocks, "heads.head.weight"]
    layers = [set(map(id, layer)) for layer in layers_in_order(net)]
    assert {id(net.network.encoder.pos_embedding), id(net.network.conv_proj.weight)} <= layers[0]
    assert id(net.network.encoder.ln.weight) in layers[-2]


def test_a_convnext_has_each_block_and_each_downsampling():
    blocks = {1: 3, 3: 3, 5: 9, 7: 3}
    middle = [
        f"features.{stage}.{block}.layer_scale" if stage in blocks else f"features.{stage}.0.weight"
        for stage in range(1, 8)
        for block in range(blocks.get(stage, 1))
    ]
    assert first_names(meta("convnext_tiny")) == ["features.0.0.weight", *middle, "classifier.2.weight"]


def test_a_squeezenet_has_a_layer_for_each_fire():
    fires = [f"features.{index}.squeeze.weight" for index in (3, 4, 5, 7, 8, 9, 10, 12)]
    assert first_names(meta("squeezenet1_0")) == ["features.0.weight", *fires, "classifier.1.weight"]


def test_a_plain_stack_has_a_layer_for_each_convolution_with_its_norm():
    convolutions = [f"features.{index}.weight" for index in (0, 4, 8, 11, 15, 18, 22, 25)]
    linear = [f"classifier.{index}.weight" for index in (0, 3, 6)]
    assert first_names(meta("vgg11_bn")) == [*convolutions, *linear]


@pytest.mark.parametrize(
    ("net", "num_layers"),
    [(SimpleCNN(3, 8, hidden_features=4), 4), (SmallResNet(3, 8, width=2), 5), (SmallResNet(3, 8, 2, 2), 8)],
)
def test_our_own_networks_are_in_order(net: nn.Module, num_layers: int):
    assert len(first_names(net)) == num_layers


def test_the_last_layer_of_a_users_own_network_is_the_head():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert first_names(net) == ["0.weight", "3.weight"]
