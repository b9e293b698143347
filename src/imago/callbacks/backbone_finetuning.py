"""Unfreeze a network gradually: train the head alone at first, later the layers below it."""

import logging
from itertools import chain
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from imago.errors import ConfigError
from imago.model.adapt import keep_frozen_in_eval_mode
from imago.model.layers import layers_in_order, new_module_names

log = logging.getLogger(__name__)


class BackboneFinetuning(Callback):
    """Freeze and unfreeze layers of a task whose network is `net` and whose learning-rate schedule steps.

    Lightning's own callback adds the backbone to the optimizer when it is unfrozen, but torch's schedules require all
    parameter groups from the start. Here they exist from the start: a frozen parameter has no gradient, and optimizers
    skip it, weight decay included. No state is saved: the epoch determines which layers train, also in a resumed run.

    Args:
        unfreeze_backbone_at_epoch: counted from 0; before it only the head and a new stem train.
        epochs_per_layer: from then on, epochs until one more layer below the head is unfrozen, as in Howard and Ruder
            2018, section 3.3 (arXiv:1801.06146); 0 unfreezes all at once. `imago.model.layers` defines a layer.
    """

    needs_net = True  # of the task

    def __init__(self, unfreeze_backbone_at_epoch: int, epochs_per_layer: int = 0) -> None:
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.epochs_per_layer = epochs_per_layer
        self._last_num_trained = 0  # layers, in the epoch before

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ConfigError(
                "callbacks/backbone_finetuning with several processes needs "
                "trainer.strategy=ddp_find_unused_parameters_true."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set `requires_grad` for the layers that train in this epoch, and only for these."""
        epoch = trainer.current_epoch
        net: Any = pl_module.net
        layers = layers_in_order(net)
        num_trained = self._num_trained(epoch, len(layers))
        trained = {id(parameter) for layer in layers[len(layers) - num_trained :] for parameter in layer}
        for part in new_module_names(net):
            trained |= {id(parameter) for parameter in getattr(net, "body", net).get_submodule(part).parameters()}
        for optimizer in trainer.optimizers:  # some parameters of a network never train
            for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
                parameter.requires_grad_(id(parameter) in trained)
        net.train()  # also the modules that were frozen and in eval mode
        keep_frozen_in_eval_mode(net)
        if num_trained != self._last_num_trained:
            self._last_num_trained = num_trained
            log.info("epoch %d: %d of %d layers are trained", epoch, num_trained, len(layers))

    on_train_start = on_train_epoch_start  # for an epoch that is resumed in the middle

    def _num_trained(self, epoch: int, num_layers: int) -> int:
        num_epochs = epoch - self.unfreeze_backbone_at_epoch
        if num_epochs < 0:
            return 1
        return num_layers if self.epochs_per_layer == 0 else min(num_layers, 2 + num_epochs // self.epochs_per_layer)
