"""Locks, stop signals, processes and renaming, as far as this system has them; `other_system` removes the rest."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from imago import system
from imago.system import STOP_SIGNALS, is_parent, lock, own_session, replace, stop, try_lock

HOLD = """
import sys
from imago.system import try_lock
file = open(sys.argv[1], "ab")
print(try_lock(file, is_inherited=sys.argv[2] == "True"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path: Path):
    """Return a process that holds a lock until its input ends."""

    def start(is_inherited: bool) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "lock"), str(is_inherited)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"True"
        return process

    return start


@pytest.mark.parametrize("is_inherited", [True, False])
def test_a_lock_is_refused_to_others_until_its_process_is_killed(tmp_path: Path, hold, is_inherited: bool):
    process = hold(is_inherited)
    with (tmp_path / "lock").open("ab") as file:
        assert not try_lock(file, is_inherited)
        process.kill()
        process.wait()
        assert try_lock(file, is_inherited)


def test_a_reader_sees_a_lock_and_shares_its_own(tmp_path: Path, hold):
    process = hold(False)
    with (tmp_path / "lock").open("rb") as file:
        assert not try_lock(file, is_inherited=False)
        process.communicate(b"")
        assert try_lock(file, is_inherited=False)


def test_waiting_for_a_lock_ends_when_it_is_free(tmp_path: Path):
    with (tmp_path / "lock").open("ab") as ours, (tmp_path / "lock").open("ab") as theirs:
        lock(theirs)
        timer = threading.Timer(0.1, theirs.close)
        timer.start()
        start_s = time.monotonic()
        lock(ours)
        assert 0.05 < time.monotonic() - start_s < 5
        timer.join()


def test_the_stop_signals_are_those_of_the_system():
    names = {"SIGINT", "SIGTERM", "SIGBREAK"} if os.name == "nt" else {"SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"}
    assert {number.name for number in STOP_SIGNALS} == names


@pytest.mark.skipif(os.name == "nt", reason="Windows has no sessions")
def test_a_process_of_its_own_session_is_stopped_with_and_without_its_children():
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = subprocess.Popen([sys.executable, "-c", parent], **own_session())
    assert os.getsid(process.pid) == process.pid
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    stop(process.pid)
    assert process.wait() == -signal.SIGTERM
    assert children[0].is_running()
    os.killpg(process.pid, 0)  # the session is still there
    stop(process.pid, with_children=True)
    assert psutil.wait_procs(children, timeout=20)[1] == []
    stop(process.pid)  # it has exited: nothing happens


def test_a_process_knows_its_parent():
    assert is_parent(os.getppid())
    assert not is_parent(os.getpid() if os.name != "nt" else 2**30)


def test_without_posix_a_living_process_counts_as_parent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(system, "IS_POSIX", False)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_parent(process.pid)
    process.communicate(b"\n")
    assert not is_parent(process.pid)


def test_a_file_that_somebody_reads_is_replaced_when_he_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new", "utf-8")
    real, failures = Path.replace, [PermissionError(13, "in use"), PermissionError(13, "in use")]

    def refuse_twice(path: Path, other: Path) -> Path:
        if failures:
            raise failures.pop()
        return real(path, other)

    monkeypatch.setattr(Path, "replace", refuse_twice)
    with pytest.raises(PermissionError):  # POSIX: it is no reader, but a missing permission
        replace(source, target)
    monkeypatch.setattr(system, "IS_POSIX", False)
    replace(source, target)
    assert target.read_text("utf-8") == "new"
    failures.append(PermissionError(13, "in use"))
    monkeypatch.setattr(system, "_BUSY_S", -1.0)
    with pytest.raises(PermissionError):
        replace(target, source)


def test_workers_are_forked_on_linux_only():
    is_forked = system.START_METHOD == "fork"
    assert is_forked == (sys.platform == "linux")
    assert is_forked or system.START_METHOD is None


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_batch():
    code = """
import resource, sys, torch
from imago.system import keep_freed_memory
assert sys.argv[1] == "False" or keep_freed_memory()
for _ in range(10):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    usual, kept = (
        int(subprocess.check_output([sys.executable, "-c", code, str(is_kept)])) for is_kept in (False, True)
    )
    assert kept < usual / 2  # tensors of 40 MB: 9,766 pages each, or 20 huge ones
