"""Knowledge distillation: a task whose training loss compares the network with a trained teacher."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imago.task.classification import ClassificationTask


class DistillationTask(ClassificationTask):
    """Classification with the training loss alpha * T^2 * KL(teacher || student) + (1 - alpha) * `loss`.

    Both distributions are softened by the temperature T; T^2 keeps the size of the gradients. Source: Hinton, Vinyals
    and Dean 2015, section 2 (arXiv:1503.02531). Validation and test do not use the teacher.

    Args:
        teacher: maps the student's batches to logits (N, K); neither trained nor saved.
        temperature: divisor of the logits, above 0.
        alpha: weight of the teacher in the loss, in [0, 1].
        **settings: arguments of `ClassificationTask`.
    """

    def __init__(self, teacher: nn.Module, temperature: float, alpha: float, **settings: Any) -> None:
        super().__init__(**settings)
        teacher.eval().requires_grad_(False)
        self._teacher = lambda: teacher  # a function: no submodule to train, save or (for EMA) copy
        self.temperature = temperature
        self.alpha = alpha

    def on_fit_start(self) -> None:
        self._teacher().to(self.device)

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = self._teacher()(images)
        divergence = softened_divergence(logits, teacher_logits, self.temperature)
        return self.alpha * divergence + (1 - self.alpha) * self.loss(logits, labels)


def softened_divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of logits (N, K), averaged over the batch: ()."""
    student, teacher = (functional.log_softmax(x.float() / temperature, dim=1) for x in (logits, teacher_logits))
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Teacher(nn.Module):
    """Apply a network to the student's normalized images, with the mean, std and size that the network expects.

    The teacher gets the same augmented view as the student: Beyer et al. 2022, section 3.1 (arXiv:2106.05237).
    `preprocess` of the teacher and `student` are each an `imago.images.Preprocess` as a dict.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, preprocess: Mapping[str, Any], student: Mapping[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.size_px = int(preprocess["size"])
        mean, std, student_mean, student_std = (
            torch.tensor(record[name], dtype=torch.float32).view(1, 3, 1, 1)
            for record in (preprocess, student)
            for name in ("mean", "std")
        )
        self.register_buffer("scale", student_std / std)
        self.register_buffer("shift", (student_mean - mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        """Map the student's images (N, 3, H, W) to logits (N, K)."""
        if images.shape[-1] != self.size_px:
            size = (self.size_px, self.size_px)
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        return self.net(images * self.scale + self.shift)
