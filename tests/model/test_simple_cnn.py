"""SimpleCNN: number of parameters, shapes, gradients and dropout."""

import pytest
import torch

from imago.errors import ConfigError
from imago.model.simple_cnn import SimpleCNN


def test_at_32_px_it_has_two_million_parameters():
    # 3x3 convolutions 3 -> 32 -> 64, then 64 * 8 * 8 -> 512 -> 10, each with its bias
    expected = (3 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 8 * 8 + 1) * 512 + (512 + 1) * 10
    assert sum(parameter.numel() for parameter in SimpleCNN(10, 32).parameters()) == expected == 2_122_186


@pytest.mark.parametrize("image_size", [4, 8, 28, 32, 64])
def test_logits_have_a_column_for_each_class(image_size: int):
    net = SimpleCNN(num_classes=7, image_size=image_size, hidden_features=16)
    assert net(torch.zeros(3, 3, image_size, image_size)).shape == (3, 7)


def test_dropout_is_on_in_training_mode_only():
    torch.manual_seed(0)
    net = SimpleCNN(4, 8, dropout=0.5)
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_an_image_size_below_4_is_refused():
    with pytest.raises(ConfigError, match=r"preprocess\.size=3 is below 4"):
        SimpleCNN(4, 3)
