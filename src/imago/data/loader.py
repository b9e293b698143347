"""Provide the DataLoader of every split: whole batches, errors raised in the main process, signals ignored."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from imago.errors import ConfigError, DataError
from imago.system import START_METHOD, STOP_SIGNALS, is_parent

WORKER_TIMEOUT_S = 300  # without a batch for this long the run ends with an error; our own choice


class BatchLoader(DataLoader):
    """Load the batches that the dataset returns, and raise the `DataError` if the dataset returned one.

    Args:
        dataset: its `__getitems__` takes a batch key from the sampler and returns a whole batch or a `DataError`.
        sampler: yields one key per batch.
        num_workers: processes that prepare batches; they are kept between epochs.
        settings: further arguments of DataLoader, e.g. `prefetch_factor`.
        pin_memory: for a network on a CUDA device: the batch is copied there while the device computes.

    Raises:
        ConfigError: if DataLoader refuses `settings`.
    """

    def __init__(
        self, dataset: Any, sampler: Any, num_workers: int, settings: Mapping[str, Any], pin_memory: bool = False
    ) -> None:
        chosen: dict[str, Any] = {"pin_memory": pin_memory, "persistent_workers": num_workers > 0}
        if num_workers:
            chosen |= {"timeout": WORKER_TIMEOUT_S, "multiprocessing_context": START_METHOD}
        try:
            super().__init__(
                dataset,
                batch_sampler=sampler,
                collate_fn=_move_to_shared_memory,
                num_workers=num_workers,
                worker_init_fn=_ignore_signals_of_others,
                **(chosen | dict(settings)),
            )
        except (ValueError, TypeError) as error:
            typed = " ".join(f"data.loader.{name}={value}" for name, value in settings.items())
            raise ConfigError(f"{typed} with data.num_workers={num_workers}: {' '.join(str(error).split())}") from error
        if num_workers:  # not by `atexit`, which does not run in a forked or spawned rank
            # 100: before the exit handlers of multiprocessing, which would wait for the workers.
            Finalize(None, _kill_stuck_workers, exitpriority=100)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own iterator class
        return map(self._raise_if_error, super().__iter__())

    def _raise_if_error(self, batch: Any) -> Any:
        if not isinstance(batch, DataError):
            return batch
        workers: Any = self._iterator  # where torch keeps persistent workers; None without workers
        if workers is not None:
            workers._shutdown_workers()  # the traceback keeps this loader alive, and with it its processes
            self._iterator = None  # the next epoch starts new workers
        raise batch


def _move_to_shared_memory(batch: Any) -> Any:
    """Move the batch of a worker to shared memory, so that a lack of shared memory raises in the main process.

    Otherwise torch moves it in a thread of the worker; if that fails, the main process waits until its timeout.
    """
    if get_worker_info() is not None and not isinstance(batch, DataError):
        for item in batch:
            if hasattr(item, "share_memory_"):  # the name of the split in `BatchChoices` has not
                item.share_memory_()
    return batch


def _ignore_signals_of_others(worker: int) -> None:
    """Ignore signals that do not come from the main process, whose current step may need more batches.

    A terminal, `timeout`, SLURM and service managers signal all processes of a job at once. SIGTERM is also how
    the main process ends its workers, so it is ignored from other senders where `sigwaitinfo` reports the sender.
    """
    parent: Any = multiprocessing.parent_process()
    if not is_parent(parent.pid):  # the main process was killed while this worker started
        os._exit(0)
    for number in {*STOP_SIGNALS} - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_from, args=(parent.pid,), daemon=True).start()


def _exit_on_sigterm_from(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _kill_stuck_workers() -> None:
    """Kill workers that do not react to SIGTERM, for which `multiprocessing` would wait without a limit."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
