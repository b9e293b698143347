"""Freezing, gray images and copied weights: which tensors change, and which modules stay in eval mode."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from imago.errors import ConfigError
from imago.model.adapt import adapt, freeze_parameters, keep_frozen_in_evaluation
from imago.model.cifar_quick import CifarQuick
from imago.model.simple_cnn import SimpleCNN
from imago.model.small_resnet import SmallResNet
from imago.model.stem import luminance
from imago.model.torchvision_net import TorchvisionNet
from imago.model.whitened_resnet import WhitenedResNet
from imago.optimizer.groups import parameter_groups


def step(net: nn.Module) -> set[str]:
    """Take a training step and return the names of all tensors that it changed, running statistics included."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(net, 0.0), lr=0.1)
    net.train()
    nn.functional.cross_entropy(net(torch.randn(8, 3, 32, 32)), torch.arange(8) % 5).backward()
    optimizer.step()
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


# Freezing


def test_a_glob_freezes_the_parameters_it_matches_and_their_batch_statistics():
    net = SmallResNet(5, 32, width=4, freeze="stages.[01].*")
    changed = step(net)
    frozen = {name for name in net.state_dict() if name.startswith(("stages.0.", "stages.1."))}
    assert changed == set(net.state_dict()) - frozen


def test_a_frozen_batch_norm_in_a_trained_block_stays_in_eval_mode():
    net = SmallResNet(5, 32, width=4, freeze="*norm*")
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert not {name for name in step(net) if "norm" in name}
    assert net.stages[0][0].conv1.training


def test_a_batch_norm_of_which_one_parameter_trains_updates_its_statistics():
    net = SmallResNet(5, 32, width=4, freeze="norm.weight")
    assert {"norm.bias", "norm.running_mean"} <= step(net)


def test_dropout_is_off_inside_a_frozen_block_only():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2), nn.Dropout())
    freeze_parameters(net, "0.*", ["1"])
    keep_frozen_in_evaluation(net.train())
    assert [net[0][1].training, net[2].training] == [False, True]


@pytest.mark.parametrize("kind", [SimpleCNN, CifarQuick, SmallResNet, WhitenedResNet])
def test_every_network_of_our_own_can_train_its_head_alone(kind: type):
    own = {"widths": (4, 8), "logit_scale": 1.0} if kind is WhitenedResNet else {}
    net = kind(5, 32, freeze="backbone", **own)
    assert {name.rpartition(".")[0] for name in step(net)} == set(net.head_names)
    assert [module.training for module in net.modules()].count(True) == 2  # the whole, and its head
    assert not any(module.training for module in net.eval().modules())


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
    assert step(net) == {f"network.{key}" for key in trained}
    assert {key for key, value in net.network.named_parameters() if value.requires_grad} == trained


def test_a_frozen_backbone_stays_in_eval_mode_with_its_dropout():
    net = TorchvisionNet(5, 32, "mobilenet_v3_small", None, "backbone")
    assert {name for name, module in net.network.named_modules() if module.training} == {"classifier.3"}
    assert not any(module.training for module in net.eval().modules())


@pytest.mark.parametrize("freeze", [None, "none"])
def test_none_trains_everything(freeze: str | None):
    net = SmallResNet(5, 32, width=4, freeze=freeze)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("freeze", "hint"),
    [
        ("layer1", r"did you mean layer1\.\*\?"),
        ("layer9.*", r"they are called conv1\.weight, bn1\.weight, bn1\.bias \.\.\. fc\.bias"),
        ("all", "they are called"),
    ],
)
def test_a_glob_that_matches_nothing_is_refused(freeze: str, hint: str):
    with torch.device("meta"), pytest.raises(ConfigError, match=rf"model\.freeze={freeze[:5]}.* matches none.*{hint}"):
        TorchvisionNet(5, 224, "resnet18", None, freeze)


def test_a_glob_that_leaves_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match=r"model\.freeze=\* leaves nothing to train"):
        SmallResNet(5, 32, width=4, freeze="*")


def test_a_glob_that_would_freeze_random_values_is_refused(tmp_path: Path):
    torch.save(TorchvisionNet(7, 224, "resnet18", None, None).network.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ConfigError, match=r"model\.freeze=\[cl\]\* would keep conv1\.weight random: .* for it;"):
        TorchvisionNet(5, 32, "resnet18", str(tmp_path / "resnet18.pth"), "[cl]*")  # 32 px: a new stem
    TorchvisionNet(5, 224, "resnet18", str(tmp_path / "resnet18.pth"), "[cl]*")


def test_a_checkpoint_is_rebuilt_with_its_glob():
    net = SmallResNet(5, 32, width=4, freeze="stages.0.*")
    again = SmallResNet(5, 32, width=4, freeze="stages.0.*")
    again.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again.eval()(images), net.eval()(images))


# Gray images


def gray_images(size: int) -> Tensor:
    return torch.randn(2, 1, size, size).expand(2, 3, size, size)


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18"])
def test_a_gray_network_with_the_weights_of_a_color_network_returns_the_same_on_gray_images(name, tmp_path):
    file = str(tmp_path / "file.pth")
    torch.save(models.get_model(name).state_dict(), file)
    color, gray = (TorchvisionNet(1000, 64 + 1, name, file, None, channels).eval() for channels in (3, 1))
    images = gray_images(65)
    with torch.no_grad():
        torch.testing.assert_close(gray(images), color(images), rtol=1e-4, atol=1e-4)
    assert next(gray.parameters()).shape[1] == 1


@pytest.mark.parametrize("kind", [SimpleCNN, CifarQuick, SmallResNet])
def test_a_gray_network_uses_the_luminance_only(kind: type):
    torch.manual_seed(0)
    net = kind(3, 16, in_channels=1).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net(images), net(luminance(images).expand(2, 3, 16, 16)))


def test_a_gray_networks_own_weights_are_copied_unchanged(tmp_path: Path):
    net = SmallResNet(3, 16, width=4, in_channels=1)
    torch.save(net.state_dict(), tmp_path / "gray.pth")
    again = SmallResNet(3, 16, width=4, in_channels=1, weights=str(tmp_path / "gray.pth"))
    assert torch.equal(again.stem.weight, net.stem.weight)


def test_the_first_values_of_the_head_are_the_same_for_gray_and_color():
    heads = []
    for channels in (1, 3):
        torch.manual_seed(0)
        heads.append(SmallResNet(3, 16, width=4, in_channels=channels).head.weight)
    assert torch.equal(*heads)


# Any network


def test_a_network_that_is_no_subclass_of_ours_is_adapted_too():
    net = models.squeezenet1_0(num_classes=5)
    file_weights = {key: torch.ones_like(value) for key, value in models.squeezenet1_0().state_dict().items()}
    adapt(net, Path("file.pth"), freeze="backbone", in_channels=1, state=file_weights)
    assert net.replaced == ["classifier.1.weight", "classifier.1.bias"]
    assert {name for name, value in net.named_parameters() if value.requires_grad} == set(net.replaced)
    assert (net.features[0].weight == 3).all()  # ones, summed over the colors
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 5)
