"""When a signal takes effect, and that a rank ends with the process that started it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from warm_python import is_alive

from imago.errors import Stopped
from imago.runs import signals as signals_module
from imago.runs.signals import Signals, stopped_by, watch_main_process

NUMBERS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)


@pytest.fixture(autouse=True)
def _nothing_is_ignored():
    """Handle Ctrl-C, which a script in the background ignores, and SIGHUP, which nohup ignores; restore all after."""
    old = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    old[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_outside_of_training_a_signal_exits_at_once_and_once_more_does_not_interrupt_the_exit(number: int):
    with pytest.raises(Stopped) as stop, Signals().handle():
        send(number)
    send(number)
    assert (stop.value.reason, stop.value.code) == (signal.Signals(number).name, 143)


def test_outside_of_training_ctrl_c_is_a_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt), Signals().handle():
        send(signal.SIGINT)
    send(signal.SIGINT)


@pytest.mark.parametrize("number", [*NUMBERS, signal.SIGINT])
def test_in_training_a_signal_is_deferred(number: int):
    signals = Signals()
    with signals.handle():
        signals.is_deferred = True
        send(number)
        send(number)  # a terminal and torchrun both send it
        assert signals.received_signal == number
        with pytest.raises(Stopped) as stop:
            signals.raise_if_received()
    assert stop.value.code == (130 if number == signal.SIGINT else 143)


def test_a_second_signal_later_exits_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals_module, "_REPEATED_SIGNAL_S", 0.0)
    signals = Signals()
    signals.is_deferred = True
    with signals.handle():
        send(signal.SIGTERM)
        assert signals.received_signal == signal.SIGTERM
        with pytest.raises(Stopped):
            send(signal.SIGTERM)


def test_the_handlers_are_restored():
    before = [signal.getsignal(number) for number in NUMBERS]
    with Signals().handle():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_background_job_still_ignores_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Signals().handle():
        send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_forked_loader_worker_is_not_stopped():
    signals = Signals()
    with signals.handle():
        pid = os.fork()
        if not pid:
            try:
                send(signal.SIGTERM)
                os._exit(0 if signals.received_signal == signal.SIGTERM else 3)
            except BaseException:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert signals.received_signal is None


def test_a_rank_other_than_0_exits_without_an_error_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert stopped_by(signal.SIGTERM).code == 0


class Ranks:
    """Replaces Lightning's launcher, with one running process."""

    procs = (type("Process", (), {"is_alive": lambda self: True})(),)

    def __init__(self) -> None:
        self.sent: list[int] = []

    def kill(self, number: int) -> None:
        self.sent.append(number)


def test_a_process_that_waits_for_forked_ranks_passes_the_signal_on_and_waits():
    signals = Signals()
    signals.launcher = ranks = Ranks()
    with signals.handle():
        send(signal.SIGTERM)
    assert (ranks.sent, signals.received_signal) == ([signal.SIGTERM], signal.SIGTERM)


MAIN = """
import os, subprocess, sys, time
from imago.runs.signals import watch_main_process
watch_main_process()
code = "import time; from imago.runs import signals; signals._GRACE_S = 0.1; "
code += "signals.watch_main_process(); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"LOCAL_RANK": "1"})
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_rank_ends_when_the_process_that_started_it_is_killed():
    environment = {name: value for name, value in os.environ.items() if name != signals_module._MAIN_PID_VARIABLE}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", MAIN], stdout=subprocess.PIPE, env=environment) as main:
        assert main.stdout is not None
        child = int(main.stdout.readline())
        time.sleep(2)
        assert is_alive(child)
        main.kill()
    end = time.monotonic() + 30
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_alive(child)


def test_a_rank_that_another_launcher_started_is_not_watched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(signals_module._MAIN_PID_VARIABLE, raising=False)
    monkeypatch.setenv("RANK", "1")
    watch_main_process()
    assert signals_module._MAIN_PID_VARIABLE not in os.environ
