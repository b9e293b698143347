"""SIGTERM, SIGUSR1, SIGHUP and Ctrl-C: while training they wait for the end of the step, else they act at once."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any

from imago.errors import Stopped
from imago.runs.rank import is_main_process

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# A terminal, torchrun and a sweep all pass a signal on: within this time a second one is the same one.
_SAME_SIGNAL_S = 10.0


class Signals:
    """What this process was told, and when it may act on it.

    Attributes:
        received: number of the first signal; None before.
        is_deferred: true between the first and the last training step, where leaving at once would lose the epoch:
            `StopOnSignal` then looks at `received` before every step.
        launcher: Lightning's, which knows the processes of the other ranks; None in those.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_deferred = False
        self.launcher: Any = None
        self._pid = os.getpid()
        self._received_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"launcher": None}  # on the way to a spawned rank

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle the signals within, and put the handlers back after, unless one has come.

        Then the process is about to leave, and the same one once more must not break into that.
        """
        old = {number: signal.getsignal(number) for number in _SIGNALS}
        self.install()
        try:
            yield
        finally:
            if self.received is None and threading.current_thread() is threading.main_thread():
                for number, handler in old.items():
                    if handler is not None:
                        signal.signal(number, handler)

    def install(self) -> None:
        """Handle the signals in this process: again after Lightning has put in its own, and in each new rank."""
        if self._pid != os.getpid():
            self._pid, self.launcher = os.getpid(), None
        if threading.current_thread() is not threading.main_thread():
            return  # a notebook's or a test's thread cannot
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in a background job or under nohup
                signal.signal(number, self._handle)

    def raise_if_received(self) -> None:
        """Leave after a signal that came while it was deferred.

        Raises:
            Stopped: with the signal's name.
        """
        if self.received is not None:
            self._pass_on(self.received)
            raise stopped_by(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process that prepares batches, or a rank that has not come to `install`
            self.received = self.received or number
            return
        now = monotonic()
        is_first = self.received is None
        if not is_first and now - self._received_at < _SAME_SIGNAL_S:
            return
        self.received, self._received_at = self.received or number, now
        if is_first and self._waits_for_ranks():
            self._pass_on(number)
        elif not is_first or not self.is_deferred:
            self._pass_on(number)
            raise KeyboardInterrupt if self.received == signal.SIGINT else stopped_by(self.received)

    def started_ranks(self) -> list[subprocess.Popen]:
        """Give the processes of the ranks from 1 on that this one has started with a command of their own."""
        return [process for process in self._processes() if isinstance(process, subprocess.Popen)]

    def _waits_for_ranks(self) -> bool:
        """Whether all training is done by processes that this one has forked or spawned, and that it waits for."""
        return any(not isinstance(process, subprocess.Popen) and process.is_alive() for process in self._processes())

    def _processes(self) -> Sequence[Any]:
        return getattr(self.launcher, "procs", ())

    def _pass_on(self, number: int) -> None:
        if self.launcher is not None:
            self.launcher.kill(number)


def stopped_by(number: int) -> Stopped:
    """Give what a process leaves with: 130 after Ctrl-C and 143 after the others.

    A rank but the first leaves with 0: Lightning and torchrun kill all others at once when one leaves with an error,
    and the first may still be saving.
    """
    reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    exit_code = 130 if number == signal.SIGINT else 143
    return Stopped(reason, exit_code if is_main_process() else 0)
