"""What a batch changes before the optimizer does, as it was before: an exception in the middle of it can be undone."""

from collections import defaultdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


class BeforeBatch:
    """Copies of a module's buffers (BatchNorm's running statistics) and of its sums over the training images.

    Args:
        module: has its sums in `scores["train"]`; its buffers are changed in place, never replaced.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module: Any = module
        buffers: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in module.buffers():
            buffers[buffer.dtype].append(buffer)  # tensors of one type are copied at once
        self._buffers = [(list(same), [buffer.clone() for buffer in same]) for same in buffers.values()]
        self._sums: dict[str, Any] = {}
        self._step = -1

    def keep(self, step: int) -> None:
        """Take copies before a batch; `step` counts the optimizer steps that are done."""
        for buffers, copies in self._buffers:
            torch._foreach_copy_(copies, buffers)
        self._sums = dict(vars(self._module.scores["train"]))
        self._step = step

    def restore(self, step: int) -> None:
        """Undo a batch, unless the optimizer has done its step since."""
        if step == self._step:
            for buffers, copies in self._buffers:
                torch._foreach_copy_(buffers, copies)
            vars(self._module.scores["train"]).update(self._sums)
