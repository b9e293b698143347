"""Tasks, LightningModules and a logger as users write them: `task._target_=own_tasks.NAME`."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from imago.task.base import Batch, ImageTask
from imago.task.classification import ClassificationTask


class LossOnly(ClassificationTask):
    """A task whose training step returns the loss alone."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)["loss"]  # type: ignore[index,call-overload]


class Manual(ImageTask):
    """A task with manual optimization and two optimizer steps per batch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        optimizer: Any = self.optimizers()
        for _ in range(2):
            outputs: Any = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(outputs["loss"])
            optimizer.step()
        return outputs | {"loss": outputs["loss"].detach()}


class RawSteps(Manual):
    """A task that steps the optimizer itself, so that the Trainer counts no steps."""

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return super().optimizers(use_pl_optimizer=False)


class Rotation(ImageTask):
    """Predict by how many degrees an image is rotated."""

    @classmethod
    def output_names(cls, class_names: Any) -> list[str]:
        return ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]

    def inputs_and_targets(self, images: Tensor, labels: Tensor) -> Batch:
        turns = torch.arange(len(images), device=images.device) % 4
        rotated = [torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(images, turns.tolist(), strict=True)]
        return torch.stack(rotated) if rotated else images, turns


class OwnTest(ImageTask):
    """Predict the class modulo 5, with as many outputs as classes."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        super().test_step((batch[0], batch[1] % 5), batch_idx)


class OwnForward(ImageTask):
    """Scale what the network returns."""

    def forward(self, images: Tensor) -> Tensor:
        return -2 * super().forward(images)


class Template(LightningModule):
    """A module with network, optimizer and scheduler as arguments, and metrics of its own."""

    def __init__(
        self, net: nn.Module, optimizer: Callable, scheduler: Callable | None, num_classes: int, compile: bool = False
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net
        self.loss = nn.CrossEntropyLoss()
        self.accuracies = nn.ModuleDict({f"{split}_acc": MulticlassAccuracy(num_classes) for split in ("val", "test")})
        self.train_loss = MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch[0]), batch[1])
        self.train_loss(loss)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def _evaluate(self, batch: Batch, split: str) -> None:
        logits = self(batch[0])
        accuracy = self.accuracies[f"{split}_acc"]
        accuracy(logits, batch[1])
        self.log(f"{split}/loss", self.loss(logits, batch[1]), on_epoch=True)
        self.log(f"{split}/acc", accuracy, on_epoch=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams["optimizer"](params=self.parameters())
        if self.hparams["scheduler"] is None:
            return optimizer
        scheduler = self.hparams["scheduler"](optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


class ManualModule(Template):
    """A module without a scheduler that steps its optimizer itself, so that the Trainer counts no steps."""

    def __init__(self, net: nn.Module, optimizer: Callable, num_classes: int) -> None:
        super().__init__(net, optimizer, None, num_classes)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Flattens(nn.Module):
    """A published kind of network: `view` needs contiguous memory, and the number of classes is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.max_pool2d(self.conv(images), 2)
        return self.head(features.view(features.size(0), -1))


class PerImageLoss(nn.Module):
    """A loss without its mean."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none")


class HardLabelLoss(nn.Module):
    """A loss for class indices only."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.log_softmax(1).gather(1, labels[:, None]).mean()


class Plain(LightningModule):
    """A module without arguments that logs names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 10)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def _log_accuracy(self, batch: Batch, name: str) -> None:
        self.log(name, (self.layer(batch[0].flatten(1)).argmax(1) == batch[1]).float().mean(), on_epoch=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._log_accuracy(batch, "val_acc")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._log_accuracy(batch, "test_acc")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Adapting(Callback):
    """A callback that stores both of its settings in checkpoints, and increases the first after each epoch."""

    def __init__(self, level: float, share: float) -> None:
        self.level, self.share = level, share
        self.used: list[tuple[float, float]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.used.append((self.level, self.share))
        self.level += 1

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "share": self.share}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.level, self.share = state_dict["level"], state_dict["share"]


class WandbLogger(CSVLogger):
    """Has the name and the arguments of Lightning's logger for W&B."""

    def __init__(self, save_dir: str, id: str | None = None, version: str | None = None) -> None:
        super().__init__(save_dir)
        self.id = version or id


class HiddenWeights(nn.Module):
    """A loss of one's own that keeps `weight` under another name."""

    def __init__(self, weight: list[float], divides_by_images: bool = False) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(weight))
        if divides_by_images:
            self.total_weight = None

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, self.numbers, reduction="sum") / len(labels)


class Penalized(ImageTask):
    """A task whose second term is divided by the images."""

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits, labels) + 0.5 * logits.pow(2).mean()


class LikeLoss(Penalized):
    divides_like_loss = True
