"""The failure files of the ranks, and which of them is the reason for the end of a run."""

import errno
import json
import os
import resource
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from imago.errors import ConfigError, DataError, Stopped, StorageError, UserError
from imago.runs.failure import (
    clear_failures,
    explain_exit,
    first_failure,
    to_user_error,
    write_failure,
    write_killed_failure,
    write_killed_failures,
)

LOST = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242"
KILLED = "killed by signal 9, possibly out of memory: try a smaller data.batch_size"


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write the failure of a rank."""

    def write(rank: int, error: BaseException) -> None:
        monkeypatch.setenv("RANK", str(rank))
        write_failure(tmp_path, error)
        monkeypatch.delenv("RANK")

    return write


def reason(directory: Path) -> str:
    failure = first_failure(directory)
    return f"{failure.rank}: {failure.text}" if failure else "none"


def test_the_earliest_failure_is_the_reason(tmp_path: Path, fail):
    fail(3, ValueError("earlier"))
    fail(0, ValueError("later"))
    assert reason(tmp_path) == "3: ValueError: earlier"


def test_a_lost_connection_is_the_reason_only_if_there_is_no_other(tmp_path: Path, fail):
    fail(0, RuntimeError(LOST))
    assert reason(tmp_path).startswith(
        "0: lost the connection to another process of this run (gloo or nccl: Connection"
    )
    write_killed_failure(tmp_path, 1, -9)
    assert reason(tmp_path) == f"1: {KILLED}"


def test_the_first_failure_of_a_rank_is_kept_and_half_a_file_is_ignored(tmp_path: Path, fail):
    fail(1, ValueError("the bug"))
    write_killed_failure(tmp_path, 1, -6)
    (tmp_path / "failure_rank0.json").write_text('{"rank": "0", "wh')
    assert reason(tmp_path) == "1: ValueError: the bug"
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
    saved = json.loads((tmp_path / name).read_text())
    assert (saved["text"], saved["is_user_error"]) == ("no images.", True)
    assert "DataError" in saved["traceback"]


class ExitedError(Exception):
    """As torch raises it when a forked rank ended."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"process 0 terminated with exit code {exit_code}")
        self.exit_code = exit_code


@pytest.mark.parametrize(
    ("error", "received_signal", "status", "reason", "code"),
    [
        (Stopped("SIGUSR1", 143), 10, "stopped", "SIGUSR1", 143),
        (ExitedError(143), 15, "stopped", "SIGTERM", 143),
        (ExitedError(143), None, "stopped", "SIGTERM", 143),
        (ExitedError(130), None, "stopped", "Ctrl-C", None),
        (RuntimeError(LOST), 15, "stopped", "SIGTERM", 143),  # what fails during the exit
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly"), 2, "stopped", "Ctrl-C", None),
        (DataError("the disk is full."), 15, "failed", "the disk is full.", None),  # the user must see this
        (ExitedError(1), None, "failed", "ExitedError: process 0 terminated with exit code 1", None),
    ],
)
def test_a_stop_is_distinguished_from_a_failure(tmp_path: Path, error, received_signal, status: str, reason: str, code):
    *end, exit_error = explain_exit(error, tmp_path, received_signal)
    assert end == [status, reason]
    assert isinstance(exit_error, KeyboardInterrupt) == (reason == "Ctrl-C")
    assert getattr(exit_error, "code", None) == code


def test_a_user_error_of_a_rank_becomes_one_line(tmp_path: Path, fail):
    fail(1, DataError("no images."))
    *end, exit_error = explain_exit(ExitedError(1), tmp_path, None)
    assert end == ["failed", "rank 1: no images."]
    assert isinstance(exit_error, UserError)


def test_a_download_that_is_cut_off_is_not_a_lost_rank(tmp_path: Path, fail):
    fail(0, RuntimeError(LOST))
    fail(
        1,
        DataError("s3://b/chunk-0-0.bin cannot be downloaded: ConnectionResetError(104, 'Connection reset by peer')."),
    )
    _, reason, _ = explain_exit(RuntimeError(LOST), tmp_path, None)
    assert reason.startswith("rank 1: s3://b/chunk-0-0.bin cannot be downloaded")


def test_a_connection_that_is_lost_by_a_bug_of_a_rank_is_not_an_error_of_the_user(tmp_path: Path, fail):
    fail(1, ZeroDivisionError("broken"))
    lost = RuntimeError(LOST)
    *end, exit_error = explain_exit(lost, tmp_path, None)
    assert end == ["failed", "rank 1: ZeroDivisionError: broken"]
    assert (type(exit_error), str(exit_error)) == (RuntimeError, end[1])
    assert to_user_error(exit_error) is exit_error
    clear_failures(tmp_path)
    status, reason, exit_error = explain_exit(lost, tmp_path, None)
    assert (status, isinstance(exit_error, UserError)) == ("failed", True)
    assert reason == str(exit_error)
    assert "gloo or nccl: Connection closed by peer [127.0.0.1]:4242): it or its machine has ended" in reason
    advice = f"{LOST}. This is typically caused by a remote worker crashing; check the logs of the others for why."
    *_, exit_error = explain_exit(RuntimeError(advice), tmp_path, None)
    assert "gloo or nccl: Connection closed by peer [127.0.0.1]:4242): it or its machine has ended" in str(exit_error)


def test_a_failure_of_this_process_alone_does_not_name_a_rank(tmp_path: Path):
    error = ConfigError("seed=-1 must be 0 or more.")
    write_failure(tmp_path, error)
    assert explain_exit(error, tmp_path, None) == ("failed", "seed=-1 must be 0 or more.", error)


def test_a_rank_that_torchrun_stops_because_another_failed_reports_that_failure(tmp_path: Path, fail):
    fail(1, ZeroDivisionError("broken"))
    assert explain_exit(Stopped("SIGTERM", 143), tmp_path, 15)[:2] == ("failed", "rank 1: ZeroDivisionError: broken")
    clear_failures(tmp_path)
    fail(1, RuntimeError(LOST))  # raised in the other ranks when this one has exited
    assert explain_exit(Stopped("SIGTERM", 143), tmp_path, 15)[0] == "stopped"


@pytest.mark.parametrize(("exit_code", "texts"), [(-9, [KILLED]), (-15, []), (0, []), (1, []), (None, [])])
def test_a_killed_rank_is_recorded_and_one_that_exited_is_not(tmp_path: Path, exit_code, texts: list[str]):
    write_killed_failure(tmp_path, 1, exit_code)
    assert [json.loads(file.read_text())["text"] for file in tmp_path.iterdir()] == texts


def test_after_a_lost_connection_the_killed_rank_is_found(tmp_path: Path):
    killed = subprocess.Popen(["sleep", "60"])
    killed.kill()
    running: Any = SimpleNamespace(join=lambda timeout_s: None, exitcode=None)  # a forked rank
    write_killed_failures(tmp_path, ValueError("of this process"), {1: killed, 2: running})
    assert first_failure(tmp_path) is None
    write_killed_failures(tmp_path, RuntimeError(LOST), {1: killed, 2: running})
    _, reason, exit_error = explain_exit(RuntimeError(LOST), tmp_path, None)
    assert reason == f"rank 1: {KILLED}"
    assert isinstance(exit_error, UserError)
    clear_failures(tmp_path)
    assert isinstance(explain_exit(RuntimeError(LOST), tmp_path, None)[2], UserError)  # in the other ranks


@pytest.mark.parametrize(
    ("use_too_much", "words"),
    [
        (lambda: np.empty(10**15), "too little memory (Unable to allocate"),
        (lambda: torch.empty(10**15), "too little memory (DefaultCPUAllocator: can't allocate memory"),
        (lambda: bytearray(10**15), "too little memory (MemoryError)"),
        (lambda: [os.dup(0) for _ in range(100)], "Too many open files: `ulimit -n 4096`"),
    ],
)
def test_a_machine_that_is_too_small_is_one_line(use_too_much, words: str):
    with pytest.raises((MemoryError, RuntimeError, OSError)) as caught:
        with_few_files(use_too_much)
    line = to_user_error(caught.value)
    assert isinstance(line, UserError)
    assert str(line).startswith(words)


def with_few_files(work) -> None:
    """Call `work` with a limit of 60 open files; close those that it opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = set(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, limits[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in set(os.listdir("/dev/fd")) - before:
            with suppress(OSError):
                os.close(int(number))


def test_batchnorm_over_one_value_is_one_line_that_names_the_batch_size():
    with pytest.raises(ValueError, match="Expected more than 1 value") as caught:
        torch.nn.BatchNorm1d(3)(torch.zeros(1, 3))
    line = to_user_error(caught.value)
    assert isinstance(line, UserError)
    assert str(line).startswith("data.batch_size: BatchNorm needs more than 1 value per channel")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_disk_is_one_line_also_if_a_logger_wraps_the_error_and_a_user_error_is_unchanged(number: int):
    full = OSError(number, os.strerror(number), "/runs/a/metrics.csv")
    wrapped = ValueError("\n you tried to log 2.9 which is currently not supported.")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        line = to_user_error(error)
        assert isinstance(line, StorageError)
        assert str(line).startswith(f"/runs/a/metrics.csv cannot be written ({os.strerror(number)}); free some space")
        assert to_user_error(line) is line
