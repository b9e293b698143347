"""When a signal acts: at once, at the end of a step, once for the same signal passed on twice."""

import os
import pickle
import signal
import time

import pytest

from imago.errors import Stopped
from imago.runs import signals as signals_module
from imago.runs.signals import Signals, stopped_by

NUMBERS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture(autouse=True)
def _nothing_is_ignored():
    """Let Ctrl-C through, which a script in the background ignores, and SIGHUP, which nohup does; put all back."""
    old = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    old[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_outside_of_training_it_leaves_at_once(number: int):
    with pytest.raises(Stopped) as stop, Signals().caught():
        send(number)
    assert (stop.value.reason, stop.value.code) == (signal.Signals(number).name, 143)


def test_ctrl_c_is_python_s_own_outside_of_training():
    with pytest.raises(KeyboardInterrupt), Signals().caught():
        send(signal.SIGINT)


@pytest.mark.parametrize("number", [*NUMBERS, signal.SIGINT])
def test_in_training_it_waits_to_be_asked(number: int):
    signals = Signals()
    with signals.caught():
        signals.is_deferred = True
        send(number)
        send(number)  # a terminal and torchrun both pass it on
        assert signals.received == number
        with pytest.raises(Stopped) as stop:
            signals.raise_if_received()
    assert stop.value.code == (130 if number == signal.SIGINT else 143)


def test_a_later_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals_module, "_SAME_SIGNAL_S", 0.0)
    signals = Signals()
    signals.is_deferred = True
    with signals.caught():
        send(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Stopped):
            send(signal.SIGTERM)


def test_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    with Signals().caught():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("number", [*NUMBERS, signal.SIGINT])
def test_the_same_signal_once_more_does_not_break_into_leaving(number: int):
    with pytest.raises((Stopped, KeyboardInterrupt)), Signals().caught():
        send(number)
    send(number)


def test_a_job_in_the_background_goes_on_ignoring_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Signals().caught():
        send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_forked_process_that_prepares_batches_lives_on():
    signals = Signals()
    with signals.caught():
        pid = os.fork()
        if not pid:
            try:
                send(signal.SIGTERM)
                os._exit(0 if signals.received == signal.SIGTERM else 3)
            except BaseException:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert signals.received is None


def test_a_rank_but_the_first_leaves_without_an_error_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert stopped_by(signal.SIGTERM).code == 0


class Ranks:
    """Stands for Lightning's launcher with one living process."""

    procs = (type("Process", (), {"is_alive": lambda self: True})(),)

    def __init__(self) -> None:
        self.passed_on: list[int] = []

    def kill(self, number: int) -> None:
        self.passed_on.append(number)


def test_a_process_that_only_waits_for_its_ranks_passes_the_signal_on_and_waits():
    signals = Signals()
    signals.launcher = ranks = Ranks()
    with signals.caught():
        send(signal.SIGTERM)
    assert (ranks.passed_on, signals.received) == ([signal.SIGTERM], signal.SIGTERM)
    assert pickle.loads(pickle.dumps(signals)).launcher is None  # a spawned rank has no ranks of its own
