"""ddp_fork and ddp_spawn: an error in a rank reaches that rank's callbacks, which save and write it down.

Lightning tells the callbacks of the process that waits for the ranks, where there is nothing to save. What the system
killed can tell nothing: that process writes it down.
"""

import signal
from collections.abc import Callable
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from imago.runs.failure import record_exit


def tell_callbacks_in_ranks(trainer: Trainer, folder: Path) -> None:
    """Let `on_exception` be called in the ranks, where the launcher forks or spawns them.

    Args:
        trainer: with its strategy.
        folder: of the run, where ranks that were killed are written down.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        launcher.launch = partial(_launch, launcher, folder)  # type: ignore[method-assign]


def _launch(
    launcher: _MultiProcessingLauncher,
    folder: Path,
    function: Callable,
    *args: Any,
    trainer: Trainer,
    **kwargs: Any,
) -> Any:
    told = partial(_call, function, trainer)
    if launcher._start_method == "spawn":
        _start_resource_tracker()
    try:
        return _MultiProcessingLauncher.launch(launcher, told, *args, trainer=trainer, **kwargs)
    finally:
        for rank, process in enumerate(launcher.procs):
            record_exit(folder, rank, process.exitcode)


def _start_resource_tracker() -> None:
    """Start Python's helper of spawned processes so that it outlives a signal to all, as it does Ctrl-C and SIGTERM."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})  # handed down to it
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(function: Callable, trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_exception(trainer, trainer.lightning_module, error)
        raise
