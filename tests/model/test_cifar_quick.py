"""CifarQuick: number of parameters, shapes and gradients."""

import pytest
import torch

from imago.errors import ConfigError
from imago.model.cifar_quick import CifarQuick


def test_cifar_quick_has_145578_parameters_as_in_caffe():
    # 5x5 convolutions 3 -> 32 -> 32 -> 64, then 64 * 4 * 4 -> 64 -> 10, each with its bias
    expected = (3 * 25 + 1) * 32 + (32 * 25 + 1) * 32 + (32 * 25 + 1) * 64 + (1024 + 1) * 64 + (64 + 1) * 10
    assert sum(parameter.numel() for parameter in CifarQuick(10, 32).parameters()) == expected == 145_578


@pytest.mark.parametrize("image_size", [8, 28, 32, 33, 224])
def test_logits_have_a_column_for_each_class(image_size: int):
    assert CifarQuick(7, image_size)(torch.zeros(2, 3, image_size, image_size)).shape == (2, 7)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ConfigError, match=r"preprocess\.size=7 is below 8"):
        CifarQuick(10, 7)
