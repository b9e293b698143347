"""Unfreeze a network gradually: train the head alone at first, later the layers below it."""

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from imago.errors import ConfigError
from imago.model.adapt import keep_frozen_in_evaluation
from imago.model.layers import layers_in_order

log = logging.getLogger(__name__)


class BackboneFinetuning(lightning_callbacks.BackboneFinetuning):
    """Lightning's callback, for a task whose network is `net` and whose learning rate schedule steps.

    Lightning's own adds the backbone to the optimizer when it is unfrozen, but torch's schedules require all parameter
    groups from the start. Here they exist from the start: a frozen parameter has no gradient, and optimizers skip it,
    weight decay included. Nothing is saved: which layers train follows from the epoch, also in a resumed run.

    Args:
        unfreeze_backbone_at_epoch: counted from 0; before it only the head and a new stem train.
        epochs_per_layer: after it, unfreeze one more layer below the head every so many epochs, as in Howard and Ruder
            2018, section 3.3 (arXiv:1801.06146); 0 unfreezes all at once. `imago.model.layers` defines a layer.
    """

    def __init__(self, unfreeze_backbone_at_epoch: int, epochs_per_layer: int = 0) -> None:
        super().__init__(unfreeze_backbone_at_epoch=unfreeze_backbone_at_epoch)
        self.epochs_per_layer = epochs_per_layer
        self._num_trained: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze nothing yet: the optimizer must get every parameter."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ConfigError(
                "callbacks/backbone_finetuning with several processes needs "
                "trainer.strategy=ddp_find_unused_parameters_true."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the layers of the current epoch, in which a resumed run may be in the middle."""
        self.finetune_function(pl_module, trainer.current_epoch, trainer.optimizers[0])

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Set `requires_grad` for the layers that train in this epoch, and only for these."""
        net: Any = pl_module.net
        layers = layers_in_order(net)
        num_layers = self._num_layers(epoch, len(layers))
        trained = {id(parameter) for layer in layers[len(layers) - num_layers :] for parameter in layer}
        for part in getattr(net, "new_parts", ()):
            trained |= {id(parameter) for parameter in net.body.get_submodule(part).parameters()}
        for parameter in net.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        net.train()  # also what was frozen, and therefore in evaluation mode
        keep_frozen_in_evaluation(net)
        self._log_change(net, epoch, num_layers, len(layers))

    def _num_layers(self, epoch: int, num_layers: int) -> int:
        epochs = epoch - self.unfreeze_backbone_at_epoch
        if epochs < 0:
            return 1
        return num_layers if self.epochs_per_layer == 0 else min(num_layers, 2 + epochs // self.epochs_per_layer)

    def _log_change(self, net: nn.Module, epoch: int, num_trained: int, num_layers: int) -> None:
        if num_trained != self._num_trained:
            count = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
            log.info("epoch %d: %d of %d layers train, %s parameters", epoch, num_trained, num_layers, f"{count:,}")
        self._num_trained = num_trained
