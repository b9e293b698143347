"""Frozen parts: which, that they do not move, and that their BatchNorm and dropout stay in evaluation."""

from pathlib import Path

import pytest
import torch
from torch import nn

from imago.errors import ConfigError
from imago.model.cifar_quick import CifarQuick
from imago.model.freezing import freeze_parameters, keep_frozen_in_evaluation
from imago.model.simple_cnn import SimpleCNN
from imago.model.small_resnet import SmallResNet
from imago.model.torchvision_net import TorchvisionNet
from imago.model.whitened_resnet import WhitenedResNet
from imago.optimizer.groups import parameter_groups


def step(net: nn.Module) -> set[str]:
    """Take a training step; gives the names of all tensors that it changed, running statistics too."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(net, 0.1), lr=0.1)
    net.train()
    nn.functional.cross_entropy(net(torch.randn(8, 3, 32, 32)), torch.arange(8) % 5).backward()
    optimizer.step()
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def test_a_glob_freezes_what_it_names_with_its_batch_statistics():
    net = SmallResNet(5, 32, width=4, freeze="stages.[01].*")
    changed = step(net)
    frozen = {name for name in net.state_dict() if name.startswith(("stages.0.", "stages.1."))}
    assert changed == set(net.state_dict()) - frozen


def test_batch_norm_without_gradients_stays_in_evaluation_also_alone():
    net = SmallResNet(5, 32, width=4, freeze="*norm*")
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert not {name for name in step(net) if "norm" in name}
    assert net.stages[0][0].conv1.training


def test_batch_norm_of_which_a_part_trains_goes_on_counting():
    net = SmallResNet(5, 32, width=4, freeze="norm.weight")
    assert {"norm.bias", "norm.running_mean"} <= step(net)


def test_dropout_is_off_inside_of_a_frozen_block_only():
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


def test_a_glob_that_would_keep_random_values_is_refused(tmp_path: Path):
    torch.save(TorchvisionNet(7, 224, "resnet18", None, None).network.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ConfigError, match=r"model\.freeze=\[cl\]\* would keep conv1\.weight random: .* for it;"):
        TorchvisionNet(5, 32, "resnet18", str(tmp_path / "resnet18.pth"), "[cl]*")  # 32 px: a new stem
    TorchvisionNet(5, 224, "resnet18", str(tmp_path / "resnet18.pth"), "[cl]*")


def test_what_is_frozen_is_told_once_and_not_again_for_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    torch.save(SmallResNet(5, 32, width=4).state_dict(), tmp_path / "net.pth")
    for weights in (str(tmp_path / "net.pth"), None):
        SmallResNet(5, 32, width=4, weights=weights, freeze="backbone")
    assert caplog.text.count("the backbone is frozen") == 1


def test_a_checkpoint_is_rebuilt_with_its_glob():
    net = SmallResNet(5, 32, width=4, freeze="stages.0.*")
    again = SmallResNet(5, 32, width=4, freeze="stages.0.*")
    again.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again.eval()(images), net.eval()(images))
