"""Muon for the weights of layers, convolutions included, and AdamW for norms and biases, in one optimizer."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from imago.errors import ConfigError
from imago.model.layers import is_vector

# Coefficients and number of iterations of Jordan et al. 2024: a quintic polynomial with the steepest slope at 0, whose
# singular values end in about 0.7 to 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_RMS_OF_ADAMW = 0.2  # of a typical AdamW update (Liu et al. 2025)
_ADAMW_SHARE = 0.4  # of the learning rate of relative steps; chosen on validation images, docs/cpu94.md
_SMALLEST_NORM = 1e-7  # as in torch.optim.Muon


class Muon(Optimizer):
    """Orthogonalize the update of a weight by five Newton-Schulz iterations, scaled like an AdamW update.

    `lr` and `weight_decay` mean the same as for AdamW, and one learning rate serves all parameters. `torch.optim.Muon`
    takes matrices only; here a convolution's filters (out, in, height, width) are treated as a matrix
    (out, in * height * width), and vectors, among them tokens, are updated by AdamW. First and last layer use Muon too.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); Liu et al. 2025, section 2.2 (arXiv:2502.16982), for
    the scale.

    Args:
        params: tensors, or groups of them.
        lr: learning rate, above 0.
        weight_decay: decoupled weight decay, as in AdamW.
        momentum: share of the old average of gradients that Muon keeps at each step, in [0, 1).
        nesterov: whether Muon mixes the newest gradient into the average once more (Nesterov).
        relative: whether a convolution (out, ...) keeps the norm sqrt(out), for which `lr` is the size of an update
            relative to it (smaller if out is more than its inputs); all other parameters are then updated by AdamW,
            with 0.4 of the learning rate. For networks from scratch whose convolutions are followed by norms: the first
            step scales the weights. Source: `airbench94_muon.py` in Jordan's cifar10-airbench.
        betas: decay rates of AdamW's two moments.
        eps: number that AdamW adds to the divisor.

    Raises:
        ConfigError: if `momentum` is outside [0, 1).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        relative: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ConfigError(f"optimizer.momentum={momentum} must be at least 0 and below 1.")
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, settings | {"relative": relative, "betas": tuple(betas), "eps": eps})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state, also one that was saved before `relative` existed."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("relative", False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the loss of the closure, if there is one."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update = _muon_update if _is_for_muon(parameter, group) else _adam_update
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _is_for_muon(parameter: Tensor, group: dict[str, Any]) -> bool:
    return not is_vector(parameter) and (parameter.ndim == 4 or not group["relative"])  # type: ignore[arg-type]


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return a matrix (A, B), in bf16, with its singular values moved near 1 by five Newton-Schulz iterations."""
    a, b, c = _COEFFICIENTS
    x = matrix.to(torch.bfloat16, copy=True)
    is_tall = matrix.shape[0] > matrix.shape[1]
    if is_tall:
        x = x.T
    x.div_(x.norm().clamp(min=_SMALLEST_NORM))
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def _muon_update(weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Update a weight (out, ...) in place by an orthogonalized momentum step; `state` is created at the first call."""
    if not state:
        state["momentum"] = torch.zeros_like(grad)
    buffer = state["momentum"]
    buffer.lerp_(grad, 1 - group["momentum"])
    direction = (grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer).flatten(1)
    scale = 1.0 if group["relative"] else _RMS_OF_ADAMW * math.sqrt(max(direction.shape))
    if group["relative"]:
        weight.mul_(math.sqrt(len(weight)) / weight.norm().clamp(min=_SMALLEST_NORM))
    weight.add_(orthogonalize(direction).reshape(weight.shape), alpha=-group["lr"] * scale)


def _adam_update(weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Update a parameter in place by one AdamW step without its decay, which `step` has applied."""
    if not state:
        state.update(step=0, mean=torch.zeros_like(grad), mean_of_squares=torch.zeros_like(grad))
    first, second = state["mean"], state["mean_of_squares"]
    state["step"] += 1
    beta1, beta2 = group["betas"]
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    root = (second / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
    lr = group["lr"] * (_ADAMW_SHARE if group["relative"] else 1.0)
    weight.addcdiv_(first, root, value=-lr / (1 - beta1 ** state["step"]))
