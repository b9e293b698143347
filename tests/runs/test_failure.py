"""What ranks leave behind, and which of them is believed."""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from imago.errors import ConfigError, DataError, Stopped, StorageError, UserError
from imago.runs.failure import (
    Failure,
    clear_failures,
    first_failure,
    record_exit,
    record_lost_ranks,
    to_user_error,
    write_failure,
    write_failure_file,
)
from imago.runs.status import exit_status

LOST = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242"


def test_the_earliest_failure_is_the_reason(tmp_path: Path):
    write_failure_file(tmp_path, Failure("0", 20.0, "ValueError: later"))
    write_failure_file(tmp_path, Failure("3", 10.0, "ValueError: earlier"))
    assert first_failure(tmp_path) == Failure("3", 10.0, "ValueError: earlier")


def test_a_lost_connection_is_no_reason_where_there_is_another(tmp_path: Path):
    write_failure_file(tmp_path, Failure("0", 10.0, LOST))
    assert first_failure(tmp_path) == Failure("0", 10.0, LOST)
    write_failure_file(tmp_path, Failure("1", 20.0, "killed by signal 9; out of memory?"))
    found = first_failure(tmp_path)
    assert found is not None
    assert found.rank == "1"


def test_the_first_word_of_a_rank_stays_and_half_a_file_is_passed_over(tmp_path: Path):
    write_failure_file(tmp_path, Failure("1", 10.0, "the bug"))
    write_failure_file(tmp_path, Failure("1", 20.0, "killed by signal 6; out of memory?"))
    (tmp_path / "failure_rank0.json").write_text('{"rank": "0", "wh')
    found = first_failure(tmp_path)
    assert found is not None
    assert found.text == "the bug"
    clear_failures(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "failure_rank0.json"),
        ({"LOCAL_RANK": "1"}, "failure_rank1.json"),
        ({"LOCAL_RANK": "0", "RANK": "5"}, "failure_rank5.json"),
        ({"SLURM_PROCID": "2"}, "failure_rank2.json"),
        ({"LOCAL_RANK": "1", "NODE_RANK": "1"}, "failure_rank1_of_node_1.json"),
    ],
)
def test_a_file_is_named_after_its_rank(tmp_path: Path, monkeypatch, variables: dict[str, str], name: str):
    for variable in ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    write_failure(tmp_path, DataError("no images."))
    told = json.loads((tmp_path / name).read_text())
    assert (told["text"], told["is_users"]) == ("no images.", True)
    assert "DataError" in told["traceback"]


class ExitedError(Exception):
    """As torch raises it where a forked rank ended."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"process 0 terminated with exit code {exit_code}")
        self.exit_code = exit_code


@pytest.mark.parametrize(
    ("error", "received", "status", "reason", "code"),
    [
        (Stopped("SIGUSR1", 143), 10, "stopped", "SIGUSR1", 143),
        (ExitedError(143), 15, "stopped", "SIGTERM", 143),
        (ExitedError(143), None, "stopped", "SIGTERM", 143),
        (ExitedError(130), None, "stopped", "Ctrl-C", None),
        (RuntimeError(LOST), 15, "stopped", "SIGTERM", 143),  # what breaks while leaving
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly"), 2, "stopped", "Ctrl-C", None),
        (DataError("the disk is full."), 15, "failed", "the disk is full.", None),  # this, the user must know
        (ExitedError(1), None, "failed", "ExitedError: process 0 terminated with exit code 1", None),
    ],
)
def test_a_stop_is_told_from_a_failure(tmp_path: Path, error, received, status: str, reason: str, code):
    ending = exit_status(error, tmp_path, received)
    assert (ending.status, ending.reason) == (status, reason)
    if reason == "Ctrl-C":
        assert isinstance(ending.error, KeyboardInterrupt)
    elif code is not None:
        assert ending.error.code == code


def test_what_a_rank_tells_the_user_comes_out_as_one_line(tmp_path: Path):
    write_failure_file(tmp_path, Failure("1", 1.0, "no images.", is_users=True))
    ending = exit_status(ExitedError(1), tmp_path, None)
    assert (ending.status, ending.reason) == ("failed", "rank 1: no images.")
    assert isinstance(ending.error, UserError)


def test_a_failure_of_this_process_alone_is_told_as_it_is(tmp_path: Path):
    error = ConfigError("seed=-1 must be 0 or more.")
    write_failure(tmp_path, error)
    ending = exit_status(error, tmp_path, None)
    assert ending.error is error
    assert ending.reason == "seed=-1 must be 0 or more."


def test_a_rank_that_is_told_to_leave_because_another_failed_says_why(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    write_failure(tmp_path, ZeroDivisionError("broken"))
    ending = exit_status(Stopped("SIGTERM", 143), tmp_path, 15)  # by torchrun
    assert (ending.status, ending.reason) == ("failed", "rank 1: ZeroDivisionError: broken")
    clear_failures(tmp_path)
    write_failure(tmp_path, RuntimeError(LOST))  # what the others say when this one has left
    assert exit_status(Stopped("SIGTERM", 143), tmp_path, 15).status == "stopped"


@pytest.mark.parametrize(
    ("exit_code", "texts"), [(-9, ["killed by signal 9; out of memory?"]), (-15, []), (0, []), (1, []), (None, [])]
)
def test_a_rank_that_was_killed_is_written_down_and_one_that_left_is_not(tmp_path: Path, exit_code, texts: list[str]):
    record_exit(tmp_path, 1, exit_code)
    assert [json.loads(file.read_text())["text"] for file in tmp_path.iterdir()] == texts


def test_a_lost_connection_waits_for_the_rank_that_was_killed(tmp_path: Path):
    killed, living = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    os.kill(killed.pid, signal.SIGKILL)
    try:
        record_lost_ranks(tmp_path, ValueError("of our own"), [killed, living])
        assert first_failure(tmp_path) is None
        record_lost_ranks(tmp_path, RuntimeError(LOST), [killed, living])
        ending = exit_status(RuntimeError(LOST), tmp_path, None)
        assert ending.reason == "rank 1: killed by signal 9; out of memory?"
    finally:
        living.kill()
        living.wait()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_without_room_is_told_in_one_line_also_where_a_logger_wraps_it(number: int):
    full = OSError(number, os.strerror(number), "/runs/a/metrics.csv")
    wrapped = ValueError("\n you tried to log 2.9 which is currently not supported.")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        told = to_user_error(error)
        assert isinstance(told, StorageError)
        assert str(told).startswith(f"/runs/a/metrics.csv cannot be written ({os.strerror(number)}); make room")


def test_an_error_that_is_in_the_users_words_stays_as_it_is():
    error = StorageError("last.ckpt cannot be written.")
    assert to_user_error(error) is error
