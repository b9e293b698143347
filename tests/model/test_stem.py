"""The first convolution on gray images; on small ones it is tested with the networks."""

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from imago.errors import ConfigError
from imago.model.cifar_quick import CifarQuick
from imago.model.simple_cnn import SimpleCNN
from imago.model.small_resnet import SmallResNet
from imago.model.stem import convert_to_gray, luminance
from imago.model.torchvision_net import TorchvisionNet


def gray_images(size: int) -> Tensor:
    return torch.randn(2, 1, size, size).expand(2, 3, size, size)


def test_luminance_is_that_of_television():
    colors = torch.eye(3).reshape(3, 3, 1, 1)  # red, green and blue
    assert luminance(colors).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    images = gray_images(4)
    torch.testing.assert_close(luminance(images), images[:, :1])


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18"])
def test_a_gray_network_with_the_weights_of_a_colored_one_computes_the_same_on_gray_images(name, tmp_path):
    file = str(tmp_path / "file.pth")
    torch.save(models.get_model(name).state_dict(), file)
    colored, gray = (TorchvisionNet(1000, 64 + 1, name, file, None, channels).eval() for channels in (3, 1))
    images = gray_images(65)
    with torch.no_grad():
        torch.testing.assert_close(gray(images), colored(images), rtol=1e-4, atol=1e-4)
    assert next(gray.parameters()).shape[1] == 1


def test_summing_is_said(tmp_path, squeezenet, caplog):
    with caplog.at_level("INFO", "imago"):
        TorchvisionNet(1000, 224, "squeezenet1_0", str(squeezenet), None, 1)
    assert "features.0.weight is summed over the three colors of the file" in caplog.text


@pytest.mark.parametrize("kind", [SimpleCNN, CifarQuick, SmallResNet])
def test_a_gray_network_sees_no_color(kind: type):
    torch.manual_seed(0)
    net = kind(3, 16, in_channels=1).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net(images), net(luminance(images).expand(2, 3, 16, 16)))


def test_a_gray_networks_own_weights_are_taken_as_they_are(tmp_path):
    net = SmallResNet(3, 16, width=4, in_channels=1)
    torch.save(net.state_dict(), tmp_path / "gray.pth")
    again = SmallResNet(3, 16, width=4, in_channels=1, weights=str(tmp_path / "gray.pth"))
    assert torch.equal(again.stem.weight, net.stem.weight)


def test_new_parts_begin_as_in_color():
    heads = []
    for channels in (1, 3):
        torch.manual_seed(0)
        heads.append(SmallResNet(3, 16, width=4, in_channels=channels).head.weight)
    assert torch.equal(*heads)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_counts_are_refused(channels: int):
    with pytest.raises(ConfigError, match=rf"model\.in_channels={channels} is neither 3 .* nor 1"):
        SmallResNet(3, 16, in_channels=channels)


def test_a_network_without_a_convolution_over_colors_is_refused():
    with pytest.raises(ConfigError, match=r"model\.in_channels=1: this network takes colors only"):
        convert_to_gray(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
