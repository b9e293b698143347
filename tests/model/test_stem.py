"""The first convolution for gray images; tests/model/test_torchvision_net.py has that for small ones."""

import pytest
import torch
from torch import nn

from imago.errors import ConfigError
from imago.model.stem import convert_to_gray, luminance


def test_luminance_weights_the_colors_as_in_bt_601():
    colors = torch.eye(3).reshape(3, 3, 1, 1)  # red, green and blue
    assert luminance(colors).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    images = torch.randn(2, 1, 4, 4).expand(2, 3, 4, 4)
    torch.testing.assert_close(luminance(images), images[:, :1])


def test_a_network_without_a_convolution_over_colors_is_not_converted_to_gray():
    with pytest.raises(ConfigError, match=r"model\.in_channels=1: this network takes colors only"):
        convert_to_gray(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
