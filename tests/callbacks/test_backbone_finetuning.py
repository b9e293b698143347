"""Which layers train in which epoch, at which learning rate."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from imago.callbacks.backbone_finetuning import BackboneFinetuning
from imago.errors import ConfigError
from imago.model.layers import layers_in_order
from imago.model.small_resnet import SmallResNet
from imago.model.whitened_resnet import WhitenedResNet
from imago.optimizer.groups import parameter_groups

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*treespec:FutureWarning")


class Task(LightningModule):
    """Like the task of the project: all groups from the start, a schedule that steps, validation between epochs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        assert not any(module.training for module in self.net.modules())

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.net, 0.1, lr=0.01, head_lr_multiplier=10)
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watch(Callback):
    """Record the tensors that each epoch changed, including running statistics."""

    def __init__(self) -> None:
        self.changed: list[set[str]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = {name: value.clone() for name, value in pl_module.net.state_dict().items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = pl_module.net.state_dict()
        self.changed.append({name for name, value in now.items() if not torch.equal(value, self.before[name])})


def fit(net: nn.Module, callback: Callback, num_epochs: int) -> tuple[list[set[str]], Trainer]:
    torch.manual_seed(0)
    watch = Watch()
    batches = [(torch.randn(4, 3, 16, 16), torch.arange(4) % 3) for _ in range(2)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=num_epochs, callbacks=[callback, watch], enable_model_summary=False, **quiet)
    trainer.fit(Task(net), DataLoader(batches, batch_size=None), DataLoader(batches[:1], batch_size=None))
    return watch.changed, trainer


def below(net: nn.Module, num_layers: int) -> set[str]:
    """Names of all tensors of the last layers, running statistics among them."""
    trained = {id(parameter) for layer in layers_in_order(net)[-num_layers:] for parameter in layer}
    owners = {name.rpartition(".")[0] for name, p in net.named_parameters() if id(p) in trained}
    return {name for name in net.state_dict() if name.rpartition(".")[0] in owners}


def test_layers_that_the_network_never_trains_stay_without_gradients():
    net = WhitenedResNet(3, 16, (8, 8), 0.1)
    fixed = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    changed, _ = fit(net, BackboneFinetuning(unfreeze_backbone_at_epoch=1), 3)
    assert fixed == {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert changed[-1] == {*net.state_dict()} - fixed


def test_the_backbone_trains_from_its_epoch_on_and_does_not_move_before():
    net = SmallResNet(3, 16, width=4)
    changed, trainer = fit(net, BackboneFinetuning(unfreeze_backbone_at_epoch=2), 3)
    assert changed == [below(net, 1)] * 2 + [set(net.state_dict())]
    rates = {group["lr"] for group in trainer.optimizers[0].param_groups}  # those of the schedule
    assert sorted(rates) == pytest.approx([0.01 * 0.5**6, 0.1 * 0.5**6])  # 3 epochs of 2 steps


def test_layers_are_unfrozen_one_by_one_from_the_head_down():
    net = SmallResNet(3, 16, width=4)
    changed, _ = fit(net, BackboneFinetuning(unfreeze_backbone_at_epoch=1, epochs_per_layer=2), 4)
    assert changed == [below(net, count) for count in (1, 2, 2, 3)]


def test_any_other_network_is_frozen_except_its_last_layer():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    changed, _ = fit(net, BackboneFinetuning(unfreeze_backbone_at_epoch=1), 2)
    assert changed == [{"4.weight", "4.bias"}, set(net.state_dict())]


def test_a_new_stem_trains_from_the_start():
    net = SmallResNet(3, 16, width=4)
    net.new_stem_module_names = ["stem"]
    changed, _ = fit(net, BackboneFinetuning(unfreeze_backbone_at_epoch=5), 1)
    assert changed == [below(net, 1) | {"stem.weight"}]


@pytest.mark.parametrize(("settings", "is_refused"), [({}, True), ({"find_unused_parameters": True}, False)])
def test_several_processes_need_a_strategy_that_allows_for_frozen_parts(settings: dict, is_refused: bool):
    trainer: Any = SimpleNamespace(strategy=DDPStrategy(**settings))
    task = Task(SmallResNet(3, 16, width=4))
    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    if is_refused:
        with pytest.raises(ConfigError, match="trainer.strategy=ddp_find_unused_parameters_true"):
            callback.on_fit_start(trainer, task)
    else:
        callback.on_fit_start(trainer, task)
