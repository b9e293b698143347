"""The distillation task: a network learns from the labels and from a trained teacher."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imago.task.classification import ClassificationTask


class DistillationTask(ClassificationTask):
    """Classification whose training loss is alpha * T^2 * KL(teacher || student) + (1 - alpha) * the usual loss.

    Both distributions are softened by the temperature T; T^2 keeps the size of the gradients. Source: Hinton, Vinyals
    and Dean 2015, section 2 (arXiv:1503.02531). Validation and test know nothing of the teacher.

    Args:
        teacher: maps the batches of the student to logits (N, K). It is no part of the task: not trained, not saved.
        temperature: above 0.
        alpha: share of the teacher in the loss, in [0, 1].
        **settings: of `ClassificationTask`.
    """

    def __init__(self, teacher: nn.Module, temperature: float, alpha: float, **settings: Any) -> None:
        super().__init__(**settings)
        self._apart = _Apart(teacher.eval().requires_grad_(False))
        self.temperature = temperature
        self.alpha = alpha

    @property
    def teacher(self) -> nn.Module:
        """The teaching network, in eval mode."""
        return self._apart.module

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            taught = self.teacher(images)
        return self.alpha * softened_divergence(logits, taught, self.temperature) + (1 - self.alpha) * self.loss(
            logits, labels
        )


def softened_divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Give T^2 * KL(teacher || student), the mean over a batch, of logits (N, K) each."""
    ours, theirs = (functional.log_softmax(values.float() / temperature, dim=1) for values in (logits, taught))
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class _Apart:
    """Keeps a module out of another's parameters, checkpoint and `train()`, and from being copied with it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Apart":
        return self
