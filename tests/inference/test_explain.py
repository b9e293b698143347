"""Grad-CAM highlights what the network reacts to, in networks of any family, frozen or not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.images import Preprocess
from imago.inference.explain import grad_cam, target_layer
from imago.model.classifier import Classifier
from imago.model.simple_cnn import SimpleCNN
from imago.model.timm_net import TimmNet
from imago.model.torchvision_net import TorchvisionNet


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


TORCHVISION = {  # what is pooled, and the logits of it
    "densenet121": (lambda net, x: net.features(x).relu(), lambda net, pooled: net.classifier(pooled.mean((2, 3)))),
    "mnasnet0_5": (lambda net, x: net.layers(x), lambda net, pooled: net.classifier(pooled.mean((2, 3)))),
    "regnet_y_400mf": (lambda net, x: net.trunk_output(net.stem(x)), lambda net, pooled: net.fc(pooled.mean((2, 3)))),
    "efficientnet_b0": (lambda net, x: net.features(x), lambda net, pooled: net.classifier(pooled.mean((2, 3)))),
    "squeezenet1_0": (lambda net, x: net.features(x), lambda net, pooled: net.classifier(pooled).flatten(1)),
}
TIMM = ("densenet121", "resnetv2_18", "mobilenetv3_small_050", "convnext_atto")  # each with a pool of its own


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TORCHVISION, *(f"timm {name}" for name in TIMM)])
def test_the_map_is_grad_cam_of_what_the_head_pools(name: str):
    torch.manual_seed(4)
    size = 96
    if name.startswith("timm "):
        pytest.importorskip("timm")
        net: Any = TimmNet(3, size, name.removeprefix("timm "))
        features, rest = (lambda net, x: net.forward_features(x)), (lambda net, pooled: net.forward_head(pooled))
    else:
        net = TorchvisionNet(3, size, name)
        features, rest = TORCHVISION[name]
    model = classifier(net, size, num_classes=3)
    for module in net.modules():  # random statistics: without them most maps of random weights are dark
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    images, classes = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8), torch.tensor([0, 1, 2])
    pooled = features(net.network, images / 255).detach().requires_grad_()
    logits = rest(net.network, pooled)
    torch.testing.assert_close(logits, model(images), rtol=1e-3, atol=1e-4)
    expected = []
    for index, label in enumerate(classes):
        (gradient,) = torch.autograd.grad(logits[index, label], pooled, retain_graph=True)
        weights = gradient[index].mean(dim=(1, 2))  # equation 1 of Selvaraju et al.
        cam = torch.einsum("c,chw->hw", weights, pooled[index]).clamp_min(0).detach()  # equation 2
        cam = nn.functional.interpolate(cam[None, None], (size, size), mode="bilinear")[0, 0]
        expected.append(cam / cam.max().clamp_min(1e-30))
    assert torch.stack(expected).max() > 0
    torch.testing.assert_close(grad_cam(model, images, classes), torch.stack(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_it_equals_captum_where_the_pooled_map_is_the_output_of_a_module():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(4)
    net = TorchvisionNet(2, 64, "resnet18")
    model = classifier(net, 64)
    images, classes = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([0, 1])
    small = attr.LayerGradCam(net, net.network.layer4).attribute(images / 255, classes, relu_attributions=True)
    maps = attr.LayerAttribution.interpolate(small.detach(), (64, 64), interpolate_mode="bilinear")[:, 0]
    expected = maps / maps.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(grad_cam(model, images, classes), expected, rtol=1e-3, atol=1e-4)


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
