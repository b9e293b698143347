"""What a run directory contains after a run that finished, failed, was stopped or was resumed."""

import contextlib
import json
import logging
from pathlib import Path

import pytest

from imago.errors import ConfigError, DataError, Stopped
from imago.runs.failure import write_killed
from imago.runs.run_directory import RunDirectory

SETTINGS = ("seed: 3\n", ["seed=3"], 3)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "train" / "run", tmp_path)


def summary(directory: RunDirectory) -> dict:
    return json.loads((directory.path / "summary.json").read_text())


def test_a_run_is_running_and_then_finished(directory: RunDirectory):
    with directory.open(*SETTINGS):
        assert summary(directory)["status"] == "running"
    assert summary(directory)["status"] == "finished"
    assert summary(directory)["reason"] is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (DataError("no images."), "failed", "no images."),
        (KeyboardInterrupt(), "stopped", "Ctrl-C"),
        (SystemExit(143), "stopped", "exit code 143"),
    ],
)
def test_a_run_that_raised_has_the_reason_in_its_summary(directory: RunDirectory, error, status: str, reason: str):
    with pytest.raises(type(error)), directory.open(*SETTINGS):
        raise error
    assert (summary(directory)["status"], summary(directory)["reason"]) == (status, reason)


def test_the_log_file_has_the_lines_of_the_screen_and_the_traceback_of_an_error(directory: RunDirectory, capsys):
    with contextlib.suppress(DataError), directory.open(*SETTINGS):
        logging.getLogger("imago.test").info("a line with é")
        raise DataError("no images.")
    assert capsys.readouterr().out == "a line with é\n"
    text = (directory.path / "train.log").read_text(encoding="utf-8")
    assert "a line with é" in text
    assert "Traceback" in text


def test_no_log_handler_is_left_for_the_next_trial(directory: RunDirectory):
    before = list(logging.getLogger("imago").handlers)
    with directory.open(*SETTINGS):
        pass
    assert logging.getLogger("imago").handlers == before


def test_settings_are_saved_and_latest_links_to_the_run(directory: RunDirectory, tmp_path: Path):
    (tmp_path / "latest").symlink_to("elsewhere")
    with directory.open(*SETTINGS):
        pass
    assert (directory.path / "config.yaml").read_text() == "seed: 3\n"
    assert json.loads((directory.path / "provenance.json").read_text())["overrides"] == ["seed=3"]
    assert (tmp_path / "latest").resolve() == directory.path.resolve()


def test_a_resumed_run_keeps_its_results_and_refuses_other_data(directory: RunDirectory, tmp_path: Path):
    with directory.open(*SETTINGS):
        directory.add_provenance(data="abc", device="cpu")
        directory.update(test={"acc": 1.0})
    again = RunDirectory(directory.path, tmp_path)
    with again.open(*SETTINGS):
        assert summary(again)["test"] == {"acc": 1.0}
        with pytest.raises(DataError, match="was started on other data .fingerprint abc, now xyz"):
            again.add_provenance(data="xyz", device="cpu")
    provenance = json.loads((directory.path / "provenance.json").read_text())
    assert (provenance["data"], len(provenance["resumes"])) == ("abc", 1)


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    directory = RunDirectory(tmp_path / "run", tmp_path)
    with directory.open(*SETTINGS):
        directory.update(test=1)
    assert list((tmp_path / "run").iterdir()) == []


def test_an_empty_summary_and_partial_files_of_a_kill_do_not_prevent_a_resume(directory: RunDirectory):
    with directory.open(*SETTINGS):
        pass
    (directory.path / "summary.json").write_text("")
    (directory.path / "summary.json.1.2.part").write_text('{"sta')
    with RunDirectory(directory.path, directory.log_dir).open(*SETTINGS):
        pass
    assert summary(directory)["status"] == "finished"
    assert not list(directory.path.glob("*.part"))


def test_a_later_update_of_the_main_process_keeps_the_failure_of_a_rank(directory: RunDirectory):
    with directory.open(*SETTINGS):
        write_killed(directory.path, 1, -9)
        directory.mark_failed()
        directory.update(epochs=2)  # this process may be killed before it can write more
        found = summary(directory)
    assert (found["status"], found["epochs"]) == ("failed", 2)
    assert found["reason"] == "rank 1: killed by signal 9; out of memory?"


def test_a_check_refuses_the_directory_before_anything_is_written(directory: RunDirectory):
    def check() -> None:
        raise ConfigError("another run.")

    with pytest.raises(ConfigError, match="another run"), directory.open(*SETTINGS, check=check):
        pass
    assert list(directory.path.iterdir()) == []


def test_a_directory_is_used_by_one_run_at_a_time(directory: RunDirectory):
    with directory.open(*SETTINGS):
        assert (directory.path / ".lock").is_file()
    assert not (directory.path / ".lock").exists()


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the arguments that `scontrol` got, in job 77."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return tmp_path / "requeued"


def stop(directory: Path, reason: str) -> None:
    with pytest.raises(Stopped), RunDirectory(directory / "run", directory).open(*SETTINGS):
        raise Stopped(reason, 143)


def test_after_sigusr1_a_slurm_job_is_queued_again(requeued: Path):
    stop(requeued.parent, "SIGUSR1")
    assert requeued.read_text() == "requeue 77\n"


def test_a_task_of_a_job_array_is_queued_as_that_task(requeued: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    stop(requeued.parent, "SIGUSR1")
    assert requeued.read_text() == "requeue 5_3\n"


@pytest.mark.parametrize(("name", "value"), [("reason", "SIGTERM"), ("SLURM_PROCID", "1"), ("SLURM_JOB_ID", None)])
def test_otherwise_no_job_is_queued_again(requeued: Path, monkeypatch, name: str, value: str | None):
    if value is None:
        monkeypatch.delenv(name)
    elif name != "reason":
        monkeypatch.setenv(name, value)
    stop(requeued.parent, value if name == "reason" and value else "SIGUSR1")
    assert not requeued.exists()


def test_a_refusal_of_scontrol_is_logged(requeued: Path):
    (requeued.parent / "scontrol").write_text("#!/bin/sh\necho 'Job may not be requeued' >&2\nexit 1\n")
    stop(requeued.parent, "SIGUSR1")
    log = (requeued.parent / "run" / "train.log").read_text()
    assert "job 77 is not queued again: scontrol failed: Job may not be requeued" in log
