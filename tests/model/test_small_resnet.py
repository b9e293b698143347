"""SmallResNet: number of parameters, shapes, gradients and residual blocks."""

import pytest
import torch
from torch import nn

from imago.model.small_resnet import ResidualBlock, SmallResNet


def test_small_resnet_has_eight_layers_and_few_parameters():
    net = SmallResNet(10, 32)
    deep = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert len(deep) + 1 == 8  # and the head
    convolutions = 9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64
    norms, head = 2 * (16 + 2 * 16 + 2 * 32 + 2 * 64), 64 * 10 + 10
    assert sum(parameter.numel() for parameter in net.parameters()) == convolutions + norms + head == 77_850


@pytest.mark.parametrize(("image_size", "side"), [(32, 8), (64, 16), (65, 5), (224, 14)])
def test_the_last_stage_has_a_quarter_of_the_side_of_small_images_and_a_sixteenth_of_large_ones(
    image_size: int, side: int
):
    net = SmallResNet(7, image_size, width=4).eval()
    shapes: list[torch.Size] = []
    net.stages.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert net(torch.zeros(2, 3, image_size, image_size)).shape == (2, 7)
    assert shapes == [(2, 16, side, side)]


def test_a_block_whose_second_norm_is_zero_returns_its_input():
    block = ResidualBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.norm2.weight)
    features = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(block(features), features)
