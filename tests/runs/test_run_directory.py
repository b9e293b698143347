"""What a run directory contains after a run that finished, failed, was stopped or was resumed."""

import contextlib
import errno
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from imago.errors import ConfigError, DataError, Stopped
from imago.runs.checkpoint import AtomicCheckpointIO
from imago.runs.failure import write_killed_failure
from imago.runs.run_directory import RunDirectory, has_never_saved, lock_directory
from imago.runs.signals import STOP_SIGNALS

SETTINGS = ("seed: 3\n", ["seed=3"], 3)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "train" / "run", tmp_path)


def summary(directory: RunDirectory) -> dict:
    return json.loads((directory.path / "summary.json").read_text())


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
    before = list(logging.getLogger("imago").handlers)
    with contextlib.suppress(DataError), directory.open(*SETTINGS):
        logging.getLogger("imago.test").info("a line with é")
        raise DataError("no images.")
    assert logging.getLogger("imago").handlers == before
    assert capsys.readouterr().out == "a line with é\n"
    text = (directory.path / "train.log").read_text(encoding="utf-8")
    assert "a line with é" in text
    assert "Traceback" in text


def save(directory: RunDirectory) -> None:
    """Save a checkpoint of this name as the Trainer does."""
    AtomicCheckpointIO("a task", (), directory.link_latest).save_checkpoint(
        {"state_dict": {}}, directory.path / "checkpoints" / "last.ckpt"
    )


def test_a_run_is_running_and_then_finished_with_its_settings_saved_and_linked_as_latest_from_its_first_save(
    directory: RunDirectory, tmp_path: Path
):
    (tmp_path / "latest").symlink_to("elsewhere")
    with directory.open(*SETTINGS):
        assert summary(directory)["status"] == "running"
        assert (tmp_path / "latest").readlink() == Path("elsewhere")
        save(directory)
        assert (tmp_path / "latest").resolve() == directory.path.resolve()
    assert (summary(directory)["status"], summary(directory)["reason"]) == ("finished", None)
    assert (directory.path / "config.yaml").read_text() == "seed: 3\n"
    assert json.loads((directory.path / "provenance.json").read_text())["overrides"] == ["seed=3"]
    assert (tmp_path / "latest").resolve() == directory.path.resolve()


def test_a_resumed_run_keeps_its_results_and_refuses_other_data(directory: RunDirectory, tmp_path: Path):
    with directory.open(*SETTINGS):
        directory.add_provenance(data_fingerprint="abc", device="cpu")
        directory.update(test={"acc": 1.0})
    again = RunDirectory(directory.path, tmp_path)
    with again.open(*SETTINGS):
        assert summary(again)["test"] == {"acc": 1.0}
        with pytest.raises(DataError, match="was started on other data .fingerprint abc, now xyz"):
            again.add_provenance(data_fingerprint="xyz", device="cpu")
        again.add_provenance("abc", images="1" * 64)  # of a run that stored none at its start
        for digests in ({"images": "2" * 64}, {"test": "3" * 64}):
            again.add_provenance("abc", test="4" * 64)
            with pytest.raises(DataError, match="other data .contents of the .*images"):
                again.add_provenance("abc", **digests)
    provenance = json.loads((directory.path / "provenance.json").read_text())
    assert (provenance["data"], len(provenance["resumes"])) == ("abc", 1)
    assert (provenance["images"], provenance["test"]) == ("1" * 64, "4" * 64)


def test_a_resume_that_is_refused_leaves_the_records_of_the_run_unchanged(directory: RunDirectory, tmp_path: Path):
    with directory.open(*SETTINGS):
        save(directory)
        directory.update(test={"acc": 1.0})
    records = [directory.path / name for name in ("config.yaml", "provenance.json", "summary.json")]
    before = [file.read_bytes() for file in records]
    again = RunDirectory(directory.path, tmp_path)
    with pytest.raises(DataError), again.open("seed: 4\n", ["seed=4"], 4):
        raise DataError("other data.")
    assert [file.read_bytes() for file in records] == before

    def train() -> None:
        again.accept()
        raise DataError("a damaged image.")

    with pytest.raises(DataError), again.open("seed: 4\n", ["seed=4"], 4):
        train()
    assert (summary(again)["status"], summary(again)["test"]) == ("failed", {"acc": 1.0})
    assert (directory.path / "config.yaml").read_text() == "seed: 4\n"


def test_the_records_of_a_refused_resume_that_cannot_be_restored_say_that_it_failed(
    directory: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with directory.open(*SETTINGS):
        save(directory)
    again = RunDirectory(directory.path, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse() -> None:
        monkeypatch.setattr("imago.runs.run_directory.atomic_write", full)
        raise DataError("other data.")

    with pytest.raises(DataError, match="other data"), again.open(*SETTINGS):
        refuse()
    assert (summary(again)["status"], summary(again)["reason"]) == ("failed", "other data.")


def test_a_run_that_failed_before_its_first_save_is_forgotten(directory: RunDirectory, tmp_path: Path):
    before = RunDirectory(tmp_path / "train" / "before", tmp_path)
    with before.open(*SETTINGS):
        save(before)
    directory.path.mkdir()
    (directory.path / "metrics.csv").write_text("step\n")
    with pytest.raises(DataError), directory.open(*SETTINGS):
        raise DataError("no images.")
    assert (tmp_path / "latest").resolve().name == "before"
    with pytest.raises(DataError), directory.open(*SETTINGS):
        raise DataError("still no images.")
    assert (summary(directory)["status"], summary(directory)["reason"]) == ("failed", "still no images.")
    assert has_never_saved(directory.path)
    with directory.open("seed: 4\n", ["seed=4"], 4):
        assert (summary(directory)["status"], (directory.path / "metrics.csv").exists()) == ("running", False)
        save(directory)
    provenance = json.loads((directory.path / "provenance.json").read_text())
    assert (provenance["overrides"], "resumes" in provenance) == (["seed=4"], False)
    assert (tmp_path / "latest").resolve().name == "run"
    assert not has_never_saved(directory.path)


def test_the_directory_of_the_link_latest_is_created(directory: RunDirectory, tmp_path: Path):
    directory.log_dir = tmp_path / "new" / "logs"
    with directory.open("seed: 0", [], 0):
        save(directory)
    assert (directory.log_dir / "latest").resolve() == directory.path.resolve()


def test_a_directory_named_latest_is_left_alone_and_the_run_goes_on(directory: RunDirectory, tmp_path: Path, capsys):
    (tmp_path / "latest").mkdir()
    with directory.open(*SETTINGS):
        save(directory)
    assert summary(directory)["status"] == "finished"
    assert "latest does not point to this run: Is a directory" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "train"}


@pytest.mark.parametrize(("is_saved", "words"), [(False, " before its first checkpoint"), (True, "; to continue: ")])
def test_a_stop_is_one_line_on_the_screen(directory: RunDirectory, capsys, is_saved: bool, words: str):
    with suppress(Stopped), directory.open(*SETTINGS):
        if is_saved:
            save(directory)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert capsys.readouterr().out.startswith(f"stopped by SIGTERM{words}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_after_the_end_of_the_last_run_is_ignored(directory: RunDirectory, number: int):
    old = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    directory.signals.is_last_run = True
    try:
        with directory.open(*SETTINGS):
            pass
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)
    assert summary(directory)["status"] == "finished"


def test_a_run_does_not_end_before_its_start_if_the_clock_is_set_back(directory: RunDirectory):
    with directory.open(*SETTINGS):
        directory.update(started="2999-01-01T00:00:00+00:00")
    assert summary(directory)["ended"] == "2999-01-01T00:00:00+00:00"
    assert 0 <= summary(directory)["seconds"] < 10


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    directory = RunDirectory(tmp_path / "run", tmp_path)
    with directory.open(*SETTINGS):
        pass
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
        write_killed_failure(directory.path, 1, -9)
        directory.update()
        directory.update(epochs=2)  # this process may be killed before it can write more
        found = summary(directory)
    assert (found["status"], found["epochs"]) == ("failed", 2)
    assert found["reason"] == "rank 1: killed by signal 9, possibly out of memory: try a smaller data.batch_size"


def test_a_check_refuses_the_directory_before_anything_is_written(directory: RunDirectory):
    def check() -> None:
        raise ConfigError("another run.")

    with pytest.raises(ConfigError, match="another run"), directory.open(*SETTINGS, check=check):
        pass
    assert [file.name for file in directory.path.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", [".lock", "train.log", "checkpoints"])
def test_a_directory_with_links_is_refused_before_anything_is_written(directory: RunDirectory, name: str):
    target = directory.log_dir / "target"
    target.write_text("precious")
    directory.path.mkdir(parents=True)
    (directory.path / name).symlink_to(target)
    with pytest.raises(DataError, match=f"{name} is a link"), directory.open(*SETTINGS):
        pass
    assert target.read_text() == "precious"
    assert [file.name for file in directory.path.iterdir()] == [name]


def in_a_fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if not pid:
        work()
        signal.pause()
    return pid


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path):
    def hold() -> None:
        with lock_directory(tmp_path):
            (tmp_path / "locked").touch()
            signal.pause()

    pid = in_a_fork(hold)
    while not (tmp_path / "locked").exists():
        time.sleep(0.001)
    for _ in range(2):  # a refusal does not release the lock
        with pytest.raises(ConfigError, match="belongs to a run that is still running"), lock_directory(tmp_path):
            pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with lock_directory(tmp_path):
        pass


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path):
    with lock_directory(tmp_path):
        pid = in_a_fork(lambda: None)
    try:
        second = in_a_fork(lambda: os._exit(0 if lock_directory(tmp_path).__enter__() is None else 1))
        assert os.waitpid(second, 0)[1] == 0
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


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


@pytest.mark.parametrize(
    ("array", "job"), [({}, "77"), ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}, "5_3")]
)
def test_after_sigusr1_a_slurm_job_or_task_of_an_array_is_queued_again(requeued: Path, monkeypatch, array, job: str):
    for name, value in array.items():
        monkeypatch.setenv(name, value)
    stop(requeued.parent, "SIGUSR1")
    assert requeued.read_text(encoding="utf-8") == f"requeue {job}\n"


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
