"""Sizes of images that a network of a library cannot take."""

import pytest
import torch
from torch import nn

from imago.errors import ConfigError
from imago.model.library_net import check_image_size


class MeanColorNet(nn.Module):
    """Logits of the mean color, with a buffer and a norm whose statistics must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] % 8 == 0, "sides are multiples of 8"
        return self.head(self.norm(images.mean(dim=(2, 3)) * self.scale))


def test_checking_a_fitting_size_changes_neither_tensors_nor_the_mode():
    net = MeanColorNet()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    check_image_size(net, "mean", 16, fitting_size=8, num_classes=4)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.head.weight.device.type == "cpu"
    assert net.norm.training


def test_a_size_that_does_not_fit_is_refused_with_the_reason_and_a_size_that_does():
    with pytest.raises(ConfigError, match=r"model\.name=mean cannot take images of 12 px \(sides are mul") as caught:
        check_image_size(MeanColorNet(), "mean", 12, fitting_size=8, num_classes=4)
    assert str(caught.value).endswith("type e.g. preprocess.size=8.")


@pytest.mark.parametrize("net", [MeanColorNet(), nn.Flatten(), nn.Conv2d(3, 5, 3)])
def test_a_network_without_logits_for_the_classes_is_refused(net: nn.Module):
    with pytest.raises(ConfigError, match=r"model\.name=net is not a classifier: its output is not 5 logits"):
        check_image_size(net, "net", 8, fitting_size=8, num_classes=5)
