"""Train on smaller images in early epochs: at 20 px the arithmetic is (20 / 32)^2 = 40 % of that at 32 px."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import interpolate

from imago.errors import ConfigError


class ProgressiveSize(Callback):
    """Shrink the images (bilinear, antialiased) just before the network, so that everything else uses their full size.

    `sizes_px` are the sides of the images, each for an equal share of the epochs. Validation and test use the full
    size, and so does training if a size is not smaller. Source: Howard 2018 in the DAWNBench entry of fast.ai; Touvron
    et al. 2019 (arXiv:1906.06423) on why the last size must be the full one.

    Raises:
        ConfigError: if there is no size, or one below 1.
    """

    needs_net = True  # of the task

    def __init__(self, sizes_px: Sequence[int]) -> None:
        if not sizes_px or min(sizes_px) < 1:
            raise ConfigError(
                f"callbacks.progressive_size.sizes_px={list(sizes_px)} must be sizes in px, e.g. [24,32]."
            )
        self.sizes_px = list(sizes_px)
        self._size_px = self.sizes_px[-1]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: nn.Module = pl_module.net  # type: ignore[assignment]  # of our task
        self._hook = network.register_forward_pre_hook(self._shrink)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not in on_train_epoch_start, which is not called in an epoch that is resumed in the middle.
        self._size_px = self.size_at(trainer.current_epoch, trainer.max_epochs or 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()

    def size_at(self, epoch: int, num_epochs: int) -> int:
        """Return the size in px at an epoch counted from 0."""
        return self.sizes_px[min(epoch, num_epochs - 1) * len(self.sizes_px) // num_epochs]

    def _shrink(self, network: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (images,) = inputs
        if not network.training or self._size_px >= images.shape[-1]:
            return inputs
        return (interpolate(images, size=(self._size_px,) * 2, mode="bilinear", antialias=True),)
