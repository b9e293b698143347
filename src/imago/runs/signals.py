"""Handle Ctrl-C, SIGTERM and the other stop signals in the processes of a run."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from subprocess import Popen
from types import FrameType
from typing import Any

from imago.errors import Stopped
from imago.system import STOP_SIGNALS, is_parent

# A terminal, torchrun and a sweep all forward a signal: repetitions within this time are ignored; our own choice.
_REPEATED_SIGNAL_S = 10.0
# Set by torchrun or Lightning; a process that inherits them starts as a rank.
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RUN_ID")
_MAIN_PID_VARIABLE = "IMAGO_MAIN_PID"  # environment variable for the ranks that Lightning starts as commands
_GRACE_S = 5.0  # a rank notices and records a lost connection sooner than that; our own choice


def rank_name() -> str:
    """Return this rank by the variables that torchrun, SLURM or Lightning set: "3", or "1 of node 2"."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name]
    node, local = os.environ.get("NODE_RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    return local if node == "0" else f"{local} of node {node}"


def is_main_process() -> bool:
    """Return whether this is rank 0, also before the ranks are connected."""
    return rank_name() == "0"


def watch_main_process() -> None:
    """Start a thread that ends this rank when the main process has ended; each rank calls it at its start.

    A rank that has not yet connected would wait for rank 0 for half an hour.
    """
    main_pid = os.environ.get(_MAIN_PID_VARIABLE)
    if is_main_process():
        os.environ[_MAIN_PID_VARIABLE] = str(os.getpid())
    elif main_pid not in (None, str(os.getpid())):
        threading.Thread(target=_exit_after, args=(int(main_pid),), daemon=True).start()


def _exit_after(parent_pid: int) -> None:
    while is_parent(parent_pid):
        time.sleep(1.0)  # nothing waits for this thread
    time.sleep(_GRACE_S)
    os._exit(1)


class Signals:
    """Handle stop signals: raise at once, or defer to the next optimizer step.

    Attributes:
        received_signal: number of the first signal; None before.
        is_deferred: true from the start to the end of training, where an immediate exit would lose work:
            `StopOnSignal` then checks `received_signal` before every optimizer step.
        is_last_run: whether the process exits after the run, as outside a sweep.
        launcher: Lightning's, which holds the processes of the other ranks; None in those.
    """

    def __init__(self) -> None:
        self.received_signal: int | None = None
        self.is_deferred = False
        self.is_last_run = False
        self.launcher: Any = None
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()
        self._received_at_s = 0.0

    @contextmanager
    def handle(self) -> Iterator[None]:
        """Handle the signals within the block, and restore the old handlers unless a signal came.

        After a signal the process is about to exit, and the same signal once more must not interrupt that.
        """
        self._old_handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self.install()
        try:
            yield
        finally:
            if self.received_signal is None:
                self._set_handlers(self._old_handlers)

    def finish(self) -> None:
        """Ignore signals from now on, if the process is about to exit after a finished run."""
        if self.is_last_run and self.received_signal is None:
            self._old_handlers = dict.fromkeys(STOP_SIGNALS, signal.SIG_IGN)
            self._set_handlers(self._old_handlers)

    @staticmethod
    def _set_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)

    def install(self) -> None:
        """Install the handlers: again after Lightning has installed its own, and in each forked rank."""
        if self._pid != os.getpid():
            self._pid, self.launcher = os.getpid(), None
        # Some are ignored in a background job or under nohup.
        handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._set_handlers(dict.fromkeys(handled, self._handle))

    def raise_if_received(self) -> None:
        """Exit after a signal that came while it was deferred.

        Raises:
            Stopped: with the signal's name.
        """
        if self.received_signal is not None:
            self.forward(self.received_signal)
            raise stopped_by(self.received_signal)

    def rank_processes(self) -> dict[int, Any]:
        """Return the ranks that this process started: `Popen` of the ranks from 1 on, or all ranks if forked."""
        processes = getattr(self.launcher, "procs", ())
        return {rank + isinstance(process, Popen): process for rank, process in enumerate(processes)}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader worker, or a forked rank before `install`
            self.received_signal = self.received_signal or number
            return
        now_s = time.monotonic()
        is_first = self.received_signal is None
        if not is_first and now_s - self._received_at_s < _REPEATED_SIGNAL_S:
            return
        self.received_signal, self._received_at_s = self.received_signal or number, now_s
        ranks = self.rank_processes().values()
        waits_for_forked_ranks = any(not isinstance(rank, Popen) and rank.is_alive() for rank in ranks)
        if is_first and waits_for_forked_ranks:
            self.forward(number)
        elif not is_first or not self.is_deferred:
            self.forward(number)
            raise KeyboardInterrupt if self.received_signal == signal.SIGINT else stopped_by(self.received_signal)

    def forward(self, number: int) -> None:
        """Send a signal to the ranks that this process started."""
        if self.launcher is not None:
            self.launcher.kill(number)


def stopped_by(number: int) -> Stopped:
    """Return the exception to exit with: exit code 130 after Ctrl-C, 143 after the other signals.

    A rank other than 0 exits with 0: Lightning and torchrun kill all ranks at once when one exits with an error, and
    rank 0 may still be saving.
    """
    reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    exit_code = 130 if number == signal.SIGINT else 143
    return Stopped(reason, exit_code if is_main_process() else 0)
