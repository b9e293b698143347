"""ddp_fork and ddp_spawn: an error in a rank reaches that rank's callbacks, which save and write it down.

Lightning tells the callbacks of the process that waits for the ranks, where there is nothing to save.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher


def tell_callbacks_in_ranks(trainer: Trainer) -> None:
    """Let `on_exception` be called in the ranks, where the launcher forks or spawns them."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        launcher.launch = partial(_launch, launcher)  # type: ignore[method-assign]


def _launch(launcher: _MultiProcessingLauncher, function: Callable, *args: Any, trainer: Trainer, **kwargs: Any) -> Any:
    told = partial(_call, function, trainer)
    return _MultiProcessingLauncher.launch(launcher, told, *args, trainer=trainer, **kwargs)


def _call(function: Callable, trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_exception(trainer, trainer.lightning_module, error)
        raise
