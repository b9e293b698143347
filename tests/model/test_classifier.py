"""Classifier: normalization, memory order, state, and the inputs of the head."""

import pytest
import torch
from torch import nn

from imago.images import Preprocess
from imago.model.classifier import Classifier

PREPROCESS = Preprocess(2, 2, "center", mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))


def test_each_channel_is_normalized_by_its_own_mean_and_std():
    inputs = Classifier(nn.Identity(), ["a", "b"], PREPROCESS)(
        torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 2, 2)
    )
    assert inputs.dtype == torch.float32
    # black and white: (0 - mean) / std and (1 - mean) / std of red, green and blue
    torch.testing.assert_close(inputs[0, :, 0], torch.tensor([[0.0, 1.0], [-1.0, 1.0], [-4.0, 0.0]]))


def test_the_network_gets_channels_last_memory():
    inputs = Classifier(nn.Identity(), ["a", "b"], PREPROCESS)(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_its_state_contains_the_network_and_nothing_else():
    state = Classifier(nn.Linear(2, 2), ["a", "b"], PREPROCESS).state_dict()
    assert set(state) == {"net.weight", "net.bias"}


def test_features_are_the_inputs_of_the_last_linear_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    model = Classifier(net, ["a", "b"], PREPROCESS)
    images = torch.randint(0, 256, (3, 3, 2, 2), dtype=torch.uint8)
    features = model.features(images)
    assert features.shape == (3, 5)
    torch.testing.assert_close(net[3](features), model(images))
    assert not net[3]._forward_pre_hooks


def test_features_before_a_last_convolution_are_means_over_height_and_width():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(net, ["a", "b"], PREPROCESS)
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    features = model.features(images)
    assert features.shape == (3, 5)
    torch.testing.assert_close(net[2](features[:, :, None, None])[:, :, 0, 0], model(images))


def test_a_network_without_layers_has_no_features():
    with pytest.raises(ValueError, match="Identity has no linear layer or convolution"):
        Classifier(nn.Identity(), ["a"], PREPROCESS).features(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
