"""Grad-CAM highlights what the network reacts to, in networks of any family, frozen or not."""

import pytest
import torch
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.images import Preprocess
from imago.inference.explain import grad_cam, target_layer
from imago.model.classifier import Classifier
from imago.model.simple_cnn import SimpleCNN
from imago.model.torchvision_net import TorchvisionNet

pytest.importorskip("captum")


def classifier(net: nn.Module, size: int, num_classes: int = 2) -> Classifier:
    record = Preprocess(size, size, "center", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Classifier(net, [f"class {index}" for index in range(num_classes)], record).eval()


class RedOrBlue(nn.Module):
    """Sums what is red for class 0 and what is blue for class 1; cells of 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(4)
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.cells(images).mean(dim=(2, 3)))


def test_the_map_is_bright_where_the_class_is_and_dark_elsewhere():
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    images[:, 0, :4, :4] = 200  # red in the upper left corner
    images[:, 2, -4:, -4:] = 100  # blue in the lower right one
    maps = grad_cam(classifier(RedOrBlue(), 16), images, torch.tensor([0, 1]))
    assert maps.shape == (2, 16, 16)
    assert maps.dtype == torch.float32
    assert maps.amax(dim=(1, 2)).tolist() == [1.0, 1.0]
    assert maps[0, 0, 0] == maps[1, -1, -1] == 1
    assert maps[0, 8:, 8:].max() == maps[1, :8, :8].max() == 0


def test_an_image_in_which_nothing_contributes_to_the_class_is_dark():
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert grad_cam(classifier(RedOrBlue(), 16), images, torch.tensor([0])).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("resnet18", 32, "layer4"),
        ("squeezenet1_0", 64, "classifier.0"),  # dropout: the input of the last convolution, its head
        ("mobilenet_v3_small", 64, "features"),
        ("shufflenet_v2_x0_5", 64, "conv5"),
        ("convnext_tiny", 64, "features"),
        ("swin_t", 64, "permute"),  # the layers before it have their channels last
        ("alexnet", 64, "avgpool"),
    ],
)
def test_the_layer_is_the_last_map_before_the_head(name: str, size: int, layer: str):
    torch.manual_seed(4)  # with some random weights, no pixel contributes to either class
    net = TorchvisionNet(2, size, name).requires_grad_(False)
    model = classifier(net, size)
    assert target_layer(model) == f"network.{layer}"
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = torch.cat([grad_cam(model, images, torch.tensor([label, label])) for label in (0, 1)])
    assert maps.isfinite().all()
    assert maps.max() == 1
    assert maps.min() >= 0


def test_simple_cnn_has_a_layer():
    assert target_layer(classifier(SimpleCNN(2, 64), 64)) == "features"
    assert target_layer(classifier(SimpleCNN(2, 32), 32)) == "features"


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
    ],
    ids=["of pixels", "of their mean"],
)
def test_a_network_without_a_map_is_refused(net: nn.Module):
    with pytest.raises(ConfigError, match="explain=true: Sequential has no feature map of the image"):
        target_layer(classifier(net, 16))


@pytest.mark.slow
def test_a_transformer_is_refused():
    net = TorchvisionNet(2, 224, "vit_b_16")
    with pytest.raises(ConfigError, match="convolutional networks have one"):
        target_layer(classifier(net, 224))
