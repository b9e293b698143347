"""Freezing, gray images and copied weights: which tensors change, and which modules stay in eval mode."""

from pathlib import Path

import pytest
import torch
from networks import network
from torch import nn
from torchvision import models

from imago.errors import ConfigError, UserError
from imago.model.adapt import adapt, build_network, choose_memory_format, freeze_parameters, keep_frozen_in_eval_mode
from imago.model.cifar_quick import CifarQuick
from imago.model.layers import head_names
from imago.model.simple_cnn import SimpleCNN
from imago.model.small_resnet import SmallResNet
from imago.model.stem import luminance
from imago.model.torchvision_net import TorchvisionNet
from imago.model.whitened_resnet import WhitenedResNet
from imago.optimizer.groups import parameter_groups

WHITENED = {"widths": (4, 8), "logit_scale": 1.0}


def small_resnet(**settings) -> SmallResNet:
    return network(SmallResNet, 5, 32, width=4, **settings)


def step(net: nn.Module) -> set[str]:
    """Take a training step and return the names of all tensors that it changed, running statistics included."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(net, 0.0), lr=0.1)
    nn.functional.cross_entropy(net(torch.randn(8, 3, 32, 32)), torch.arange(8) % 5).backward()
    optimizer.step()
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


# Freezing


def test_a_glob_freezes_the_parameters_it_matches_and_their_batch_statistics():
    net = small_resnet(freeze="stages.[01].*")
    frozen = {name for name in net.state_dict() if name.startswith(("stages.0.", "stages.1."))}
    assert step(net) == set(net.state_dict()) - frozen


def test_a_frozen_batch_norm_in_a_trained_block_stays_in_eval_mode():
    net = small_resnet(freeze="*norm*")
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert not {name for name in step(net) if "norm" in name}
    assert net.stages[0][0].conv1.training


def test_a_batch_norm_of_which_one_parameter_trains_updates_its_statistics():
    assert {"norm.bias", "norm.running_mean"} <= step(small_resnet(freeze="norm.weight"))


def test_dropout_is_off_inside_a_frozen_block_only():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2), nn.Dropout())
    freeze_parameters(net, "0.*")
    keep_frozen_in_eval_mode(net.train())
    assert [net[0][1].training, net[2].training] == [False, True]


@pytest.mark.parametrize("kind", [SimpleCNN, CifarQuick, SmallResNet, WhitenedResNet])
def test_every_network_of_our_own_can_train_its_head_alone(kind: type):
    net = network(kind, 5, 32, freeze="backbone", **(WHITENED if kind is WhitenedResNet else {}))
    assert {name.rpartition(".")[0] for name in step(net)} == set(head_names(net))
    assert [module.training for module in net.modules()].count(True) == 2  # the whole, and its head


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("squeezenet1_0", {"classifier.1.weight", "classifier.1.bias", "features.0.weight", "features.0.bias"}),
        ("mobilenet_v3_small", {"classifier.3.weight", "classifier.3.bias"}),
    ],
)
def test_with_a_frozen_backbone_only_the_head_and_a_new_stem_train(name: str, trained: set[str]):
    torch.manual_seed(0)
    net = network(TorchvisionNet, 5, 32, name=name, freeze="backbone")
    in_training = {part for part, module in net.network.named_modules() if module.training}
    assert in_training == {tensor.rpartition(".")[0] for tensor in trained}
    assert step(net) == {f"network.{key}" for key in trained}


def test_freezing_leaves_layers_fixed_that_the_network_never_trains():
    net = WhitenedResNet(3, 16, (8, 8), 0.1)
    fixed = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    freeze_parameters(net, "blocks.1.*")
    now = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert "whitening.weight" in fixed
    assert now == fixed | {name for name, _ in net.named_parameters() if name.startswith("blocks.1.")}


@pytest.mark.parametrize("freeze", [None, "none"])
@pytest.mark.parametrize("kind", [SimpleCNN, CifarQuick, SmallResNet])
def test_none_trains_every_tensor(kind: type, freeze: str | None):
    net = network(kind, 5, 32, freeze=freeze)
    assert all(module.training for module in net.modules())
    assert step(net) == set(net.state_dict())


@pytest.mark.parametrize(
    ("freeze", "hint"),
    [
        ("layer1", r"matches none .* did you mean layer1\.\*\?"),
        ("layer9.*", r"matches none .* they are called conv1\.weight, bn1\.weight, bn1\.bias \.\.\. fc\.bias"),
        ("*", "leaves nothing to train"),
    ],
)
def test_a_glob_that_matches_nothing_or_everything_is_refused(freeze: str, hint: str):
    with torch.device("meta"), pytest.raises(ConfigError, match=rf"model\.freeze=.*{hint}"):
        freeze_parameters(models.resnet18(), freeze)


def test_a_glob_that_would_freeze_random_values_is_refused(tmp_path: Path):
    file = tmp_path / "squeezenet.pth"
    torch.save(models.squeezenet1_0(num_classes=7).state_dict(), file)
    settings = {"name": "squeezenet1_0", "weights": str(file), "freeze": "features*"}
    with pytest.raises(
        ConfigError, match=r"model\.freeze=features\* would keep features\.0\.weight and .*\.bias random:"
    ):
        network(TorchvisionNet, 5, 32, **settings)  # 32 px: a new stem
    network(TorchvisionNet, 5, 224, **settings)


# Gray images


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("squeezenet1_0", 65),  # its first convolution has no padding
        ("shufflenet_v2_x0_5", 64),  # zeros at the border, which stand for another gray in each channel
        ("shufflenet_v2_x0_5", 32),  # a new first convolution
        ("googlenet", 64),  # scales the channels itself
        pytest.param("vit_b_16", 224, marks=pytest.mark.slow),
    ],
)
def test_a_gray_network_computes_the_same_as_the_color_network_on_gray_images(name: str, size: int):
    nets = []
    for channels in (3, 1):
        torch.manual_seed(0)
        settings = {"_target_": OURS, "name": name, "in_channels": channels}
        nets.append(build_network(settings, 10, size, IMAGENET).eval())
    color, gray = nets
    shades = torch.nn.functional.interpolate(torch.rand(2, 1, 5, 5), size=(size, size), mode="bilinear")
    mean, std = (torch.tensor(IMAGENET[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    inputs = (shades - mean) / std  # the three channels differ, as mean and std do
    maps = []
    for net in nets:
        stem = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
        stem.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        torch.testing.assert_close(gray(inputs), color(inputs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*maps, rtol=1e-5, atol=1e-5)  # also at the border


def test_a_gray_network_sees_the_luminance_of_the_pixels():
    net = nn.Identity()
    adapt(net, preprocess=IMAGENET, in_channels=1)
    colors = torch.eye(3).reshape(3, 3, 1, 1)  # pixels: red, green and blue
    mean, std = (torch.tensor(IMAGENET[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    shades = net((colors - mean) / std) * std + mean
    expected = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1).expand(3, 3, 1, 1)  # ITU-R BT.601
    torch.testing.assert_close(shades, expected)


@pytest.mark.parametrize("kind", [SimpleCNN, CifarQuick, SmallResNet])
def test_a_gray_network_uses_the_luminance_only(kind: type):
    torch.manual_seed(0)
    net = network(kind, 3, 16, in_channels=1).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net(images), net(luminance(images).expand(2, 3, 16, 16)))


def test_a_gray_networks_own_weights_are_copied_unchanged(tmp_path: Path):
    net = small_resnet(in_channels=1)
    torch.save(net.state_dict(), tmp_path / "gray.pth")
    again = small_resnet(in_channels=1, weights=str(tmp_path / "gray.pth"))
    assert torch.equal(again.stem.weight, net.stem.weight)


def test_the_first_values_of_the_head_are_the_same_for_gray_and_color():
    heads = []
    for channels in (1, 3):
        torch.manual_seed(0)
        heads.append(small_resnet(in_channels=channels).head.weight)
    assert torch.equal(*heads)


def test_the_weights_of_a_color_network_do_not_fit_a_gray_one_with_filters_of_its_own(tmp_path: Path):
    torch.save(network(WhitenedResNet, 5, 32, **WHITENED).state_dict(), tmp_path / "color.pth")
    with pytest.raises(UserError, match="whitening"):
        network(WhitenedResNet, 5, 32, weights=str(tmp_path / "color.pth"), in_channels=1, **WHITENED)


# Any network


def test_a_network_of_another_library_is_adapted_too(tmp_path: Path):
    ones = {key: torch.ones_like(value) for key, value in models.squeezenet1_0().state_dict().items()}
    torch.save(ones, tmp_path / "ones.pth")
    net = models.squeezenet1_0(num_classes=5)
    adapt(net, tmp_path / "ones.pth", freeze="backbone", in_channels=1)
    assert net.new_tensor_names == ["classifier.1.weight", "classifier.1.bias"]
    assert {name for name, value in net.named_parameters() if value.requires_grad} == set(net.new_tensor_names)
    assert (net.features[0].weight == 1).all()
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 5)


class ReadsWeights(nn.Linear):
    """A network that takes one of the arguments itself."""

    def __init__(self, num_classes: int, image_size: int, weights: str) -> None:
        super().__init__(image_size, num_classes)
        self.read = weights


class NoNetwork:
    def __init__(self, num_classes: int) -> None:
        pass


def no_network(num_classes: int) -> NoNetwork:
    return NoNetwork(num_classes)


def test_a_class_that_takes_one_of_the_arguments_itself_is_given_it():
    target = f"{__name__}.ReadsWeights"
    net = build_network({"_target_": target, "weights": "mine", "freeze": "bias"}, 3, 2)
    assert net.read == "mine"
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, False]


def test_a_target_that_is_not_a_network_is_refused():
    with pytest.raises(ConfigError, match=r"NoNetwork is not a Module; name a class derived from torch\.nn"):
        build_network({"_target_": f"{__name__}.NoNetwork", "freeze": "backbone"}, 3, 2)
    with pytest.raises(ConfigError, match=r"no_network returns a NoNetwork, not a Module"):
        build_network({"_target_": f"{__name__}.no_network"}, 3, 2)
    with pytest.raises(ConfigError, match=r"_target_=builtins\.dict is not a Module"):
        build_network({"_target_": "builtins.dict", "freeze": "backbone"}, 3, 2)


def test_a_network_of_a_fixed_number_of_classes_is_built_if_the_data_has_as_many():
    net = build_network({"_target_": "own_tasks.Flattens"}, 10, 32)
    assert net.training
    assert choose_memory_format(net, 32) == torch.contiguous_format
    gray = build_network({"_target_": "own_tasks.Flattens", "in_channels": 1}, 10, 32)
    assert choose_memory_format(gray, 32) == torch.contiguous_format
    assert gray(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(
        ConfigError, match=r"Flattens takes no argument num_classes, and maps 2 images to \[2, 10\] where"
    ):
        build_network({"_target_": "own_tasks.Flattens"}, 3, 32)
    with pytest.raises(ConfigError, match=r"Flattens fails on images of 64 px: "):
        build_network({"_target_": "own_tasks.Flattens"}, 10, 64)


@pytest.mark.parametrize("size", [32, 224])
def test_a_function_of_a_library_whose_network_takes_one_size_is_refused_for_another(size: int):
    settings = {"_target_": "timm.create_model", "model_name": "vit_tiny_patch16_224"}
    if size == 224:
        assert build_network(settings, 3, size).training
        return
    with pytest.raises(ConfigError, match=r"_target_=timm\.create_model fails on images of 32 px: Input height \(32\)"):
        build_network(settings, 3, size)


def test_a_network_is_used_in_channels_last_unless_it_cannot_be():
    reshapes = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 8 * 8, 2))
    assert choose_memory_format(reshapes, 8) == torch.channels_last
    assert choose_memory_format(models.resnet18(num_classes=2), 32) == torch.channels_last
    assert reshapes[0].weight.is_contiguous()  # the network is not changed
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        choose_memory_format(reshapes, 16)


RESNET = "torchvision.models.resnet18"
OURS = "imago.model.torchvision_net.TorchvisionNet"
TIMM = "imago.model.timm_net.TimmNet"


def test_further_settings_go_to_what_the_name_builds():
    net = build_network({"_target_": OURS, "name": "resnet18", "zero_init_residual": True}, 3, 32)
    assert net.network.layer1[0].bn2.weight.sum() == 0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"_target_": OURS, "name": "resnet18", "zero_init": 1}, " takes no 'zero_init' (ResNet."),
        ({"_target_": OURS, "name": "googlenet", "aux_logits": True}, "model.aux_logits is not a setting here"),
        ({"_target_": RESNET, "zero_init": True}, f"_target_={RESNET} takes no 'zero_init'"),
        ({"_target_": TIMM, "name": "resnet18d", "drop_path": 0.1}, " takes no 'drop_path' (ResNet."),
        ({"_target_": TIMM, "name": "resnet18d", "pretrained": True}, "model.pretrained is not a setting here"),
    ],
)
def test_a_setting_that_no_network_takes_is_refused(settings: dict, text: str):
    with pytest.raises(ConfigError) as caught:
        build_network(settings, 3, 32)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
