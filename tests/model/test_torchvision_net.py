"""torchvision's networks: heads, stems for small images, copied weights, and their preprocess."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams

from imago.errors import ConfigError
from imago.images import Preprocess, read_image, resize_and_crop
from imago.model import pretrained
from imago.model.layers import layers_in_order
from imago.model.torchvision_net import TorchvisionNet
from imago.model.weights import read_weights
from imago.normalize import Normalize

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SEVEN = ["resnet18", "resnet34", "resnet50", "vgg16", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_0"]


# Shapes and the stem


@pytest.mark.parametrize("image_size", [32, 224])
@pytest.mark.parametrize("name", SEVEN)
def test_logits_have_a_column_for_each_class(name: str, image_size: int):
    with torch.device("meta"):  # only shapes are tested
        net = TorchvisionNet(7, image_size, name, None, None)
        assert net(torch.zeros(2, 3, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_0"])
def test_small_images_pass_the_first_convolution_at_full_resolution(name: str):
    sizes: list[torch.Size] = []
    net = TorchvisionNet(4, 32, name, None, None).eval()
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
    logits = net(torch.randn(2, 3, 32, 32))
    assert sizes == [(32, 32)]
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("image_size", "kernel", "has_pool"), [(64, (3, 3), False), (65, (7, 7), True)])
def test_the_stem_changes_up_to_64_px(image_size: int, kernel: tuple[int, int], has_pool: bool):
    network = TorchvisionNet(4, image_size, "resnet18", None, None).network
    assert network.conv1.kernel_size == kernel
    assert isinstance(network.maxpool, nn.MaxPool2d) is has_pool


@pytest.mark.parametrize("name", ["densenet121", "convnext_tiny", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"])
def test_networks_of_other_families_are_built_too(name: str):
    net = TorchvisionNet(7, 32, name, None, None).eval()
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert len(net.network.get_submodule(net.new_parts[0]).weight) == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_the_head_of_every_torchvision_classifier_is_replaced(name: str, monkeypatch):
    monkeypatch.setattr(BlockParams, "from_init_params", compute_on_cpu(BlockParams.from_init_params))
    with torch.device("meta"):
        net = TorchvisionNet(7, 224, name, None, "backbone").eval()
        assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 7)
    (head,) = net.head_names
    trained = {key for key, value in net.network.named_parameters() if value.requires_grad}
    assert trained == {f"{head}.{tensor}" for tensor, _ in net.network.get_submodule(head).named_parameters()}
    assert [id(p) for p in layers_in_order(net)[-1]] == [id(p) for p in net.network.get_submodule(head).parameters()]


def compute_on_cpu(function: Callable) -> Callable:
    """A RegNet computes its widths with tensors."""

    def run(*arguments, **settings):
        with torch.device("cpu"):
            return function(*arguments, **settings)

    return run


def test_the_size_check_allows_a_single_pixel_before_the_head():
    net = TorchvisionNet(4, 16, "mobilenet_v3_small", None, None)
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize(("name", "image_size"), [("vgg11", 28), ("vit_b_32", 32)])
def test_a_size_that_does_not_fit_is_refused_in_one_line(name: str, image_size: int):
    with pytest.raises(ConfigError, match=rf"model\.name={name} cannot take images of {image_size} px \(.*") as caught:
        TorchvisionNet(4, image_size, name, None, None)
    assert "preprocess.size=224" in str(caught.value)
    assert "\n" not in str(caught.value)


# Copied weights


@pytest.mark.parametrize(
    ("image_size", "num_loaded", "new"),
    [(224, 120, "fc.weight, fc.bias"), (32, 119, "fc.weight, fc.bias, conv1.weight")],
)
def test_weights_from_the_cache_are_copied_and_counted(image_size, num_loaded, new, cache, publish, caplog, saved):
    file = publish(saved(cache / "file", "resnet18"), "resnet18")
    with caplog.at_level(logging.INFO, "imago"):
        net = TorchvisionNet(10, image_size, "resnet18", "default", None)
    assert f"resnet18: {num_loaded} of 122 pretrained tensors loaded from {file.name} (new: {new})" in caplog.text
    state = torch.load(file, weights_only=True)
    own = net.network.state_dict()
    equal = {key for key, value in state.items() if value.shape == own[key].shape and torch.equal(value, own[key])}
    assert set(state) - equal == set(new.split(", "))
    assert len(equal) == num_loaded


def test_a_three_by_three_stem_keeps_its_weights_at_stride_one(tmp_path, saved):
    file = saved(tmp_path / "file.pth", "mobilenet_v3_small")
    net = TorchvisionNet(10, 32, "mobilenet_v3_small", str(file), None)
    assert net.new_parts == ["classifier.3"]
    assert net.network.features[0][0].stride == (1, 1)
    torch.testing.assert_close(net.network.features[0][0].weight, read_weights(file)["features.0.0.weight"])


def test_a_head_with_the_same_number_of_classes_is_copied(squeezenet, caplog):
    with caplog.at_level(logging.INFO, "imago"):
        net = TorchvisionNet(1000, 224, "squeezenet1_0", str(squeezenet), None)
    assert "52 of 52 pretrained tensors loaded" in caplog.text
    assert "new" not in caplog.text
    assert all(torch.equal(net.network.state_dict()[key], value) for key, value in read_weights(squeezenet).items())


def test_a_head_with_another_number_of_classes_is_dropped_and_logged(squeezenet, caplog):
    with caplog.at_level(logging.INFO, "imago"):
        TorchvisionNet(2, 224, "squeezenet1_0", str(squeezenet), None)
    assert "50 of 52 pretrained tensors loaded from squeezenet.pth (new: classifier.1.weight, " in caplog.text
    assert "dropped from the file: classifier.1.weight 1000x512x1x1, classifier.1.bias 1000" in caplog.text


def test_a_stem_for_small_images_is_copied_if_the_file_has_one(tmp_path):
    trained = TorchvisionNet(10, 32, "resnet18", None, None)
    torch.save({"state_dict": {f"net.{key}": v for key, v in trained.state_dict().items()}}, tmp_path / "own.ckpt")
    net = TorchvisionNet(5, 32, "resnet18", str(tmp_path / "own.ckpt"), None)
    torch.testing.assert_close(net.network.conv1.weight, trained.network.conv1.weight)


@pytest.mark.needs_data
def test_the_real_squeezenet_recognizes_ants_and_bees(real_data):
    file = str(real_data / "weights" / "squeezenet1_0-imagenet.pth")
    net = TorchvisionNet(1000, 224, "squeezenet1_0", file, None).eval()
    preprocess = Preprocess.from_dict(TorchvisionNet.weights_preprocess("squeezenet1_0", file) or {})
    categories = models.SqueezeNet1_0_Weights.DEFAULT.meta["categories"]
    for folder, label in (("ants", categories.index("ant")), ("bees", categories.index("bee"))):
        files = sorted((real_data / "hymenoptera_data" / "val" / folder).glob("*.jpg"))[:10]
        pixels = [torch.from_numpy(resize_and_crop(read_image(path), preprocess).copy()) for path in files]
        with torch.no_grad():
            top_5 = net(Normalize(preprocess)(torch.stack(pixels).permute(0, 3, 1, 2))).topk(5).indices
        assert (top_5 == label).any(dim=1).float().mean() >= 0.7  # by chance 0.005; 0.9 and 1.0 were seen


# The same network with and without the file


@pytest.mark.parametrize("image_size", [32, 224])
def test_names_and_shapes_do_not_depend_on_the_weights(squeezenet, image_size: int):
    nets = [TorchvisionNet(5, image_size, "squeezenet1_0", source, None) for source in (None, str(squeezenet))]
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in nets]
    assert shapes[0] == shapes[1]
    nets[0].load_state_dict(nets[1].state_dict())


def test_the_first_values_of_new_parts_depend_on_the_seed_and_not_on_the_weights(squeezenet):
    states = []
    for seed, source in ((0, None), (0, str(squeezenet)), (1, str(squeezenet))):
        torch.manual_seed(seed)
        net = TorchvisionNet(5, 32, "squeezenet1_0", source, None)
        states.append((net.network.features[0].weight, net.network.classifier[1].weight, torch.rand(1)))
    for without, with_file, other_seed in zip(*states, strict=True):
        assert torch.equal(without, with_file)
        assert not torch.equal(without, other_seed)


def test_without_weights_nothing_is_downloaded(cache, monkeypatch):
    monkeypatch.setattr(pretrained, "is_reachable", None)  # calling it would fail
    TorchvisionNet(5, 32, "squeezenet1_0", None, None)
    assert list(cache.iterdir()) == []


# Names and published weights


def test_an_unknown_network_is_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"model\.name=resnet81: .* did you mean resnet18"):
        TorchvisionNet(5, 32, "resnet81", None, None)


@pytest.mark.slow
def test_auxiliary_heads_of_a_file_are_left_out(tmp_path, monkeypatch, caplog):
    torch.manual_seed(1)
    with_heads = models.get_model("googlenet", weights=None, num_classes=20, init_weights=False)
    torch.save(with_heads.state_dict(), tmp_path / "googlenet.pth")
    with caplog.at_level(logging.INFO, "imago"):
        net = TorchvisionNet(5, 224, "googlenet", str(tmp_path / "googlenet.pth"), None)
    assert "(new: fc.weight, fc.bias)" in caplog.text
    torch.testing.assert_close(net.network.conv1.conv.weight, with_heads.conv1.conv.weight)
    assert net.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 5)


def test_unknown_weights_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="for resnet50 it can be default, IMAGENET1K_V1, IMAGENET1K_V2, null or"):
        TorchvisionNet.find_weights("resnet50", "IMAGENET1K_V3")


@pytest.mark.parametrize(
    ("name", "weights", "resize", "interpolation"),
    [
        ("resnet18", "default", 256, "bilinear"),
        ("resnet50", "default", 232, "bilinear"),
        ("resnet50", "IMAGENET1K_V1", 256, "bilinear"),
        ("efficientnet_b0", "default", 256, "bicubic"),
    ],
)
def test_preprocess_is_what_the_weights_were_evaluated_with(name: str, weights: str, resize: int, interpolation: str):
    expected = {"size": 224, "resize": resize, "crop": "center", "interpolation": interpolation} | IMAGENET
    assert TorchvisionNet.weights_preprocess(name, weights) == expected
    assert Preprocess.from_dict(expected).to_dict() == expected


def test_a_local_file_has_the_preprocess_of_the_default_weights():
    weights_preprocess = TorchvisionNet.weights_preprocess
    assert weights_preprocess("resnet18", "some/file.pth") == weights_preprocess("resnet18", "default")
    assert weights_preprocess("resnet18", None) is None
