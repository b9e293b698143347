"""What a network cannot take is told before training, without computing anything."""

import pytest
import torch
from torch import nn

from imago.errors import ConfigError
from imago.model.input_size import refuse_size


class Counting(nn.Module):
    """Logits of the mean color, with a buffer and a norm whose statistics must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] % 8 == 0, "sides are multiples of 8"
        return self.head(self.norm(images.mean(dim=(2, 3)) * self.scale))


def test_a_fitting_size_changes_nothing():
    net = Counting()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    refuse_size(net, "counting", 16, fitting_size=8, num_classes=4)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.head.weight.device.type == "cpu"


def test_another_size_is_refused_with_the_reason_and_the_way_out():
    with pytest.raises(
        ConfigError, match=r"model\.name=counting cannot take images of 12 px \(sides are multiples"
    ) as caught:
        refuse_size(Counting(), "counting", 12, fitting_size=8, num_classes=4)
    assert str(caught.value).endswith("type e.g. preprocess.size=8.")


@pytest.mark.parametrize("net", [Counting(), nn.Flatten(), nn.Conv2d(3, 5, 3)])
def test_what_gives_no_logits_is_no_classifier(net: nn.Module):
    with pytest.raises(ConfigError, match=r"model\.name=net is no classifier: it gives no logits for 5 classes"):
        refuse_size(net, "net", 8, fitting_size=8, num_classes=5)
