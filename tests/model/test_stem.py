"""The luminance of images; tests/model/test_torchvision_net.py has the first convolution for small ones."""

import pytest
import torch

from imago.model.stem import luminance


def test_luminance_weights_the_colors_as_in_bt_601():
    colors = torch.eye(3).reshape(3, 3, 1, 1)  # red, green and blue
    assert luminance(colors).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    images = torch.randn(2, 1, 4, 4).expand(2, 3, 4, 4)
    torch.testing.assert_close(luminance(images), images[:, :1])
