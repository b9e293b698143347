"""torch's loader as every split has it: whole batches, errors told here, and workers that outlive a signal to all."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.util import Finalize
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from imago.errors import DataError

WORKER_TIMEOUT_S = 300  # a worker that hangs ends the run instead of holding it for ever


class BatchLoader(DataLoader):
    """Gives the batches that the data set has put together, and raises the error that it gave in place of one.

    Args:
        dataset: its `__getitems__` takes what the sampler yields and gives a whole batch, or a `DataError`.
        sampler: yields what is needed to put one batch together.
        num_workers: processes that prepare batches; they live until the loader goes.
        pin_memory: whether batches come in page-locked memory, from where they get to a GPU faster.
    """

    def __init__(self, dataset: Any, sampler: Any, num_workers: int, pin_memory: bool) -> None:
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=_as_is,  # type: ignore[arg-type]  # torch expects a list of samples
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            timeout=WORKER_TIMEOUT_S if num_workers else 0,
            worker_init_fn=_outlive_signals,
        )
        if num_workers:  # not by `atexit`, which is not heard in a rank that was forked or spawned
            Finalize(None, _kill_stuck_workers, exitpriority=100)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own iterator class
        return map(self._checked, super().__iter__())

    def _checked(self, batch: Any) -> Any:
        if not isinstance(batch, DataError):
            return batch
        workers: Any = self._iterator  # torch keeps them here; None without
        if workers is not None:
            workers._shutdown_workers()  # the error keeps this object alive, and with it its processes
            self._iterator = None  # whoever goes on with this loader gets new ones
        raise batch


def _as_is(batch: tuple[Tensor, Tensor] | DataError) -> tuple[Tensor, Tensor] | DataError:
    """Pass on what the data set has already put together.

    A worker moves it to shared memory here: where there is too little, this raises in the main process, too. Left to
    torch it fails in a thread of the worker, and the main process waits for a batch that never comes.
    """
    if get_worker_info() is not None and not isinstance(batch, DataError):
        for part in batch:
            part.share_memory_()
    return batch


def _outlive_signals(worker: int) -> None:
    """Leave it to the main process to end this one: it may be in a step, and that step may need more batches.

    A terminal, `timeout`, SLURM and service managers signal all processes of a job at once. SIGTERM is also how
    the main process ends its workers, so the sender decides, which only Linux tells.
    """
    parent: Any = multiprocessing.parent_process()
    if os.getppid() != parent.pid:  # killed before this one could see it: torch would take its heir for it
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_parent_says, args=(parent.pid,), daemon=True).start()


def _leave_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _kill_stuck_workers() -> None:
    """End workers that are too stuck to hear SIGTERM, which `multiprocessing` would wait for without end."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
