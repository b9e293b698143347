"""A SLURM job queues itself again after SIGUSR1 and after nothing else."""

import logging
from pathlib import Path

import pytest

from imago.errors import Stopped
from imago.runs.requeue import requeueing


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of one file: what `scontrol` was asked for."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return tmp_path / "asked"


def leave(reason: str) -> None:
    with pytest.raises(Stopped), requeueing():
        raise Stopped(reason, 143)


def test_the_job_is_queued_again(asked: Path):
    leave("SIGUSR1")
    assert asked.read_text() == "requeue 77\n"


def test_a_task_of_an_array_is_queued_as_that_task(asked: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    leave("SIGUSR1")
    assert asked.read_text() == "requeue 5_3\n"


@pytest.mark.parametrize(("name", "value"), [("reason", "SIGTERM"), ("SLURM_PROCID", "1"), ("SLURM_JOB_ID", None)])
def test_otherwise_it_is_not(asked: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None):
    if value is None:
        monkeypatch.delenv(name)
    elif name != "reason":
        monkeypatch.setenv(name, value)
    leave(value if name == "reason" else "SIGUSR1")
    assert not asked.exists()


def test_a_cluster_that_says_no_is_quoted(asked: Path, caplog: pytest.LogCaptureFixture):
    (asked.parent / "scontrol").write_text("#!/bin/sh\necho 'Job may not be requeued' >&2\nexit 1\n")
    with caplog.at_level(logging.WARNING, logger="imago"):
        leave("SIGUSR1")
    assert "job 77 is not queued again: scontrol says Job may not be requeued" in caplog.text
