"""torchvision's networks: heads, stems for small images, copied weights, and their preprocess."""

import logging
from collections.abc import Callable

import pytest
import torch
from networks import network
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams

from imago.errors import ConfigError
from imago.images import Preprocess, read_image, resize_and_crop
from imago.model import library_net
from imago.model.layers import head_names, layers_in_order
from imago.model.torchvision_net import TorchvisionNet
from imago.model.weights import read_weights
from imago.normalize import Normalize

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def build(num_classes: int, image_size: int, name: str, weights: object = None, **settings) -> TorchvisionNet:
    path = None if weights is None else str(weights)
    return network(TorchvisionNet, num_classes, image_size, name=name, weights=path, **settings)


# Shapes and the stem


FAST = ["resnet18", "vgg16", "squeezenet1_0", "shufflenet_v2_x0_5", "mnasnet0_5"]
SLOW = ["resnet50", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "convnext_tiny", "regnet_y_400mf"]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_logits_of_small_images_have_a_column_for_each_class(name: str, monkeypatch):
    monkeypatch.setattr(BlockParams, "from_init_params", compute_on_cpu(BlockParams.from_init_params))
    with torch.device("meta"):  # only shapes are tested
        assert TorchvisionNet(7, 32, name)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def compute_on_cpu(function: Callable) -> Callable:
    """A RegNet computes its widths with tensors."""

    def run(*arguments, **settings):
        with torch.device("cpu"):
            return function(*arguments, **settings)

    return run


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_0"])
def test_small_images_pass_the_first_convolution_at_full_resolution(name: str):
    sizes: list[torch.Size] = []
    with torch.device("meta"):
        net = TorchvisionNet(4, 32, name)
        first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
        net(torch.zeros(2, 3, 32, 32))
    assert sizes == [(32, 32)]


@pytest.mark.parametrize(("image_size", "kernel", "has_pool"), [(64, (3, 3), False), (65, (7, 7), True)])
def test_the_stem_changes_up_to_64_px(image_size: int, kernel: tuple[int, int], has_pool: bool):
    with torch.device("meta"):
        resnet = TorchvisionNet(4, image_size, "resnet18").network
    assert resnet.conv1.kernel_size == kernel
    assert isinstance(resnet.maxpool, nn.MaxPool2d) is has_pool


# The smallest network of each kind; `make soak` builds all others too.
KINDS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf"),
    *("resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t"),
    *("vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)
OTHERS = [name for name in models.list_models(module=models) if name not in KINDS]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, *(pytest.param(name, marks=pytest.mark.soak) for name in OTHERS)])
def test_the_head_of_every_torchvision_classifier_is_replaced(name: str, monkeypatch):
    monkeypatch.setattr(BlockParams, "from_init_params", compute_on_cpu(BlockParams.from_init_params))
    with torch.device("meta"):
        net = build(7, 224, name, freeze="backbone").eval()
        assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 7)
    (head,) = head_names(net)
    trained = {key for key, value in net.network.named_parameters() if value.requires_grad}
    assert trained == {f"{head}.{tensor}" for tensor, _ in net.network.get_submodule(head).named_parameters()}
    assert [id(p) for p in layers_in_order(net)[-1]] == [id(p) for p in net.network.get_submodule(head).parameters()]


@pytest.mark.parametrize(("name", "image_size"), [("vgg11", 28), ("vit_b_32", 32)])
def test_a_size_that_does_not_fit_is_refused_in_one_line(name: str, image_size: int):
    refused = pytest.raises(ConfigError, match=rf"model\.name={name} cannot take images of {image_size} px \(.*")
    with torch.device("meta"), refused as caught:
        TorchvisionNet(4, image_size, name)
    assert "preprocess.size=224" in str(caught.value)
    assert "\n" not in str(caught.value)


# Copied weights


@pytest.mark.parametrize(
    ("image_size", "num_loaded", "new"),
    [
        (224, 50, "classifier.1.weight, classifier.1.bias"),
        (32, 48, "classifier.1.weight, classifier.1.bias, features.0.weight, features.0.bias"),
    ],
)
def test_weights_from_the_cache_are_copied_and_counted(image_size, num_loaded, new, cache, publish, caplog, saved):
    file = publish(saved(cache / "file", "squeezenet1_0"), "squeezenet1_0")
    with caplog.at_level(logging.INFO, "imago"):
        net = build(10, image_size, "squeezenet1_0", "default")
    assert f"squeezenet1_0: {num_loaded} of 52 pretrained tensors loaded from {file.name} (new: {new})" in caplog.text
    assert "dropped from the file: classifier.1.weight, classifier.1.bias" in caplog.text
    state = torch.load(file, weights_only=True)
    values = net.network.state_dict()
    assert {key for key in state if not torch.equal(state[key], values[key])} == set(new.split(", "))


def test_a_three_by_three_stem_keeps_its_weights_at_stride_one(tmp_path, saved):
    file = saved(tmp_path / "file.pth", "mobilenet_v3_small")
    net = build(10, 32, "mobilenet_v3_small", file)
    assert net.new_stem_module_names == []
    assert net.network.features[0][0].stride == (1, 1)
    torch.testing.assert_close(net.network.features[0][0].weight, read_weights(file)["features.0.0.weight"])


def test_a_head_with_the_same_number_of_classes_is_copied(squeezenet, caplog):
    with caplog.at_level(logging.INFO, "imago"):
        net = build(1000, 224, "squeezenet1_0", squeezenet)
    assert "52 of 52 pretrained tensors loaded" in caplog.text
    assert "new" not in caplog.text
    assert all(torch.equal(net.network.state_dict()[key], value) for key, value in read_weights(squeezenet).items())


def test_a_stem_for_small_images_is_copied_if_the_file_has_one(tmp_path):
    trained = build(10, 32, "squeezenet1_0")
    torch.save({"state_dict": {f"net.{key}": v for key, v in trained.state_dict().items()}}, tmp_path / "own.ckpt")
    net = build(5, 32, "squeezenet1_0", tmp_path / "own.ckpt")
    torch.testing.assert_close(net.network.features[0].weight, trained.network.features[0].weight)


@pytest.mark.needs_data
@pytest.mark.slow
def test_the_real_squeezenet_recognizes_ants_and_bees(real_data):
    file = str(real_data / "weights" / "squeezenet1_0-imagenet.pth")
    net = build(1000, 224, "squeezenet1_0", file).eval()
    preprocess = Preprocess.from_dict(TorchvisionNet.weights_preprocess("squeezenet1_0", file))
    categories = models.SqueezeNet1_0_Weights.DEFAULT.meta["categories"]
    theirs = models.SqueezeNet1_0_Weights.DEFAULT.transforms()
    for folder, label in (("ants", categories.index("ant")), ("bees", categories.index("bee"))):
        files = sorted((real_data / "hymenoptera_data" / "val" / folder).glob("*.jpg"))[:30]
        pixels = [torch.from_numpy(resize_and_crop(read_image(path), preprocess).copy()) for path in files]
        with torch.no_grad():
            logits = net(Normalize(preprocess)(torch.stack(pixels).permute(0, 3, 1, 2)))
            expected = net(torch.stack([theirs(Image.open(path).convert("RGB")) for path in files]))
        assert torch.equal(logits.argmax(dim=1), expected.argmax(dim=1))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert (logits.topk(5).indices == label).any(dim=1).float().mean() >= 0.7  # by chance 0.005; 0.9 and 1.0 seen


# The same network with and without the file


def test_shapes_first_values_of_new_parts_and_later_draws_depend_on_the_seed_and_not_on_the_weights(squeezenet):
    states, shapes = [], []
    for seed, source in ((0, None), (0, squeezenet), (1, squeezenet)):
        torch.manual_seed(seed)
        net = build(5, 32, "squeezenet1_0", source)
        states.append((net.network.features[0].weight, net.network.classifier[1].weight, torch.rand(1)))
        shapes.append({key: value.shape for key, value in net.state_dict().items()})
    assert shapes[0] == shapes[1]
    for without, with_file, other_seed in zip(*states, strict=True):
        assert torch.equal(without, with_file)
        assert not torch.equal(without, other_seed)


def test_without_weights_nothing_is_downloaded(cache, monkeypatch):
    monkeypatch.setattr(library_net, "is_reachable", None)  # calling it would fail
    build(5, 32, "squeezenet1_0")
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_auxiliary_heads_of_a_file_are_left_out(tmp_path, caplog):
    torch.manual_seed(1)
    with_heads = models.get_model("googlenet", weights=None, num_classes=20, init_weights=False)
    torch.save(with_heads.state_dict(), tmp_path / "googlenet.pth")
    with caplog.at_level(logging.INFO, "imago"):
        net = build(5, 224, "googlenet", tmp_path / "googlenet.pth")
    assert "(new: fc.weight, fc.bias)" in caplog.text
    torch.testing.assert_close(net.network.conv1.conv.weight, with_heads.conv1.conv.weight)
    assert net.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 5)


# Names and published weights


def test_an_unknown_network_or_unknown_weights_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"model\.name=resnet81: .* did you mean resnet18"):
        build(5, 32, "resnet81")
    with pytest.raises(ConfigError, match="for resnet50 it can be default, IMAGENET1K_V1, IMAGENET1K_V2, null or"):
        TorchvisionNet.find_weights("resnet50", "IMAGENET1K_V3")


@pytest.mark.parametrize(
    ("name", "weights", "resize", "interpolation"),
    [
        ("resnet18", "default", 256, "bilinear"),
        ("resnet18", "some/file.pth", 256, "bilinear"),
        ("resnet50", "default", 232, "bilinear"),
        ("resnet50", "IMAGENET1K_V1", 256, "bilinear"),
        ("efficientnet_b0", "default", 256, "bicubic"),
    ],
)
def test_preprocess_is_what_the_weights_were_evaluated_with(name: str, weights: str, resize: int, interpolation: str):
    expected = {"size": 224, "resize": resize, "crop": "center", "interpolation": interpolation} | IMAGENET
    assert TorchvisionNet.weights_preprocess(name, weights) == expected
    assert Preprocess.from_dict(expected).to_dict() == expected
