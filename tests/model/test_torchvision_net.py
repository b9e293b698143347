"""torchvision's networks: what is kept of the weights, what is new, and what is frozen."""

import logging
from collections.abc import Callable
from pathlib import Path

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
from imago.optimizer.groups import parameter_groups

SEVEN = ["resnet18", "resnet34", "resnet50", "vgg16", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_0"]


# Shapes and the stem


@pytest.mark.parametrize("image_size", [32, 224])
@pytest.mark.parametrize("name", SEVEN)
def test_every_network_gives_a_column_for_each_class(name: str, image_size: int):
    with torch.device("meta"):  # shapes are all that is asked for
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
def test_other_families_are_built_too(name: str):
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


def test_the_smallest_images_are_not_too_few_for_the_check_of_sizes():
    net = TorchvisionNet(4, 16, "mobilenet_v3_small", None, None)  # 1x1 places before the head
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize(("name", "image_size"), [("vgg11", 28), ("vit_b_32", 32)])
def test_a_size_that_does_not_fit_is_one_line(name: str, image_size: int):
    with pytest.raises(ConfigError, match=rf"model\.name={name} cannot take images of {image_size} px \(.*") as caught:
        TorchvisionNet(4, image_size, name, None, None)
    assert "preprocess.size=224" in str(caught.value)
    assert "\n" not in str(caught.value)


# What is kept


@pytest.mark.parametrize(
    ("image_size", "kept", "new"), [(224, 120, "fc.weight, fc.bias"), (32, 119, "fc.weight, fc.bias, conv1.weight")]
)
def test_weights_from_the_cache_are_kept_and_counted(image_size, kept, new, cache, publish, caplog, saved):
    file = publish(saved(cache / "file", "resnet18"), "resnet18")
    with caplog.at_level(logging.INFO, "imago"):
        net = TorchvisionNet(10, image_size, "resnet18", "default", None)
    assert f"resnet18: {kept} of 122 pretrained tensors kept from {file.name} (new: {new})" in caplog.text
    state = torch.load(file, weights_only=True)
    own = net.network.state_dict()
    equal = {key for key, value in state.items() if value.shape == own[key].shape and torch.equal(value, own[key])}
    assert set(state) - equal == set(new.split(", "))
    assert len(equal) == kept


def test_a_three_by_three_stem_keeps_its_weights_at_stride_one(tmp_path, saved):
    file = saved(tmp_path / "file.pth", "mobilenet_v3_small")
    net = TorchvisionNet(10, 32, "mobilenet_v3_small", str(file), None)
    assert net.new_parts == ["classifier.3"]
    assert net.network.features[0][0].stride == (1, 1)
    torch.testing.assert_close(net.network.features[0][0].weight, read_weights(file)["features.0.0.weight"])


def test_a_head_with_the_same_classes_is_kept(squeezenet, caplog):
    with caplog.at_level(logging.INFO, "imago"):
        net = TorchvisionNet(1000, 224, "squeezenet1_0", str(squeezenet), None)
    assert "52 of 52 pretrained tensors kept" in caplog.text
    assert "new" not in caplog.text
    assert all(torch.equal(net.network.state_dict()[key], value) for key, value in read_weights(squeezenet).items())


def test_another_head_is_dropped_and_said(squeezenet, caplog):
    with caplog.at_level(logging.INFO, "imago"):
        TorchvisionNet(2, 224, "squeezenet1_0", str(squeezenet), None)
    assert "50 of 52 pretrained tensors kept from squeezenet.pth (new: classifier.1.weight, " in caplog.text
    assert "dropped from the file: classifier.1.weight 1000x512x1x1, classifier.1.bias 1000" in caplog.text


def test_a_stem_for_small_images_is_kept_where_the_file_has_one(tmp_path):
    trained = TorchvisionNet(10, 32, "resnet18", None, None)
    torch.save({"state_dict": {f"net.{key}": v for key, v in trained.state_dict().items()}}, tmp_path / "own.ckpt")
    net = TorchvisionNet(5, 32, "resnet18", str(tmp_path / "own.ckpt"), None)
    torch.testing.assert_close(net.network.conv1.weight, trained.network.conv1.weight)


@pytest.mark.needs_data
def test_the_real_squeezenet_knows_ants_and_bees(real_data):
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


def test_new_parts_begin_as_the_seed_says_whatever_the_weights_are(squeezenet):
    states = []
    for seed, source in ((0, None), (0, str(squeezenet)), (1, str(squeezenet))):
        torch.manual_seed(seed)
        net = TorchvisionNet(5, 32, "squeezenet1_0", source, None)
        states.append((net.network.features[0].weight, net.network.classifier[1].weight, torch.rand(1)))
    for without, with_file, other_seed in zip(*states, strict=True):
        assert torch.equal(without, with_file)
        assert not torch.equal(without, other_seed)


def test_without_weights_no_file_is_looked_for(cache, monkeypatch):
    monkeypatch.setattr(pretrained, "is_reachable", None)  # calling it would fail
    TorchvisionNet(5, 32, "squeezenet1_0", None, None)
    assert list(cache.iterdir()) == []


# Freezing


def test_an_unknown_freeze_is_refused():
    with pytest.raises(ConfigError, match=r"model\.freeze=all matches none of the network's 52 parameters"):
        TorchvisionNet(5, 32, "squeezenet1_0", None, "all")


def step(net: TorchvisionNet) -> None:
    """One training step, over the parameters that the task would give to the optimizer."""
    optimizer = torch.optim.SGD(parameter_groups(net, 0.0), lr=0.1)
    net.train()
    nn.functional.cross_entropy(net(torch.randn(8, 3, 32, 32)), torch.arange(8) % 5).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("resnet18", {"fc.weight", "fc.bias", "conv1.weight"}),
        ("mobilenet_v3_small", {"classifier.3.weight", "classifier.3.bias"}),
    ],
)
def test_a_step_with_a_frozen_backbone_changes_the_head_and_a_new_stem_only(name: str, trained: set[str]):
    torch.manual_seed(0)
    net = TorchvisionNet(5, 32, name, None, "backbone")
    before = {key: value.clone() for key, value in net.network.state_dict().items()}
    step(net)
    after = net.network.state_dict()
    assert {key for key, value in before.items() if not torch.equal(value, after[key])} == trained
    assert {key for key, value in net.network.named_parameters() if value.requires_grad} == trained


def test_without_freezing_batch_statistics_move():
    net = TorchvisionNet(5, 32, "mobilenet_v3_small", None, None)
    before = net.network.features[0][1].running_mean.clone()
    step(net)
    assert not torch.equal(before, net.network.features[0][1].running_mean)


def test_a_frozen_part_stays_in_evaluation_with_its_dropout():
    net = TorchvisionNet(5, 32, "mobilenet_v3_small", None, "backbone")
    assert {name for name, module in net.network.named_modules() if module.training} == {"classifier.3"}
    assert not any(module.training for module in net.eval().modules())


def test_freezing_says_how_many_parameters_train(caplog, tmp_path: Path):
    torch.save(models.squeezenet1_0().state_dict(), tmp_path / "trained.pth")
    with caplog.at_level(logging.INFO, "imago"):
        TorchvisionNet(5, 224, "squeezenet1_0", str(tmp_path / "trained.pth"), "backbone")
    line = "squeezenet1_0: the backbone is frozen, 2,565 of 737,989 parameters train (classifier.1)"
    assert caplog.text.count(line) == 1


def test_a_frozen_network_that_is_rebuilt_from_a_checkpoint_says_nothing_again(caplog):
    with caplog.at_level(logging.INFO, "imago"):
        TorchvisionNet(5, 224, "squeezenet1_0", None, "backbone")
    assert caplog.text == ""
