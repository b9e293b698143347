"""The run directory tells the truth about how a run ended."""

import contextlib
import json
import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from imago.errors import ConfigError, DataError
from imago.files import make_writable
from imago.runs.failure import Failure, write_failure_file
from imago.runs.run_directory import RunDirectory, refuse_used_folder

CFG = OmegaConf.create({"seed": 3, "a": "${seed}"})


@pytest.fixture
def folder(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "train" / "run", tmp_path)


def summary(folder: RunDirectory) -> dict:
    return json.loads((folder.path / "summary.json").read_text())


def test_a_run_is_running_and_then_finished(folder: RunDirectory):
    with folder.recording(CFG, ["seed=3"]):
        assert summary(folder)["status"] == "running"
    assert summary(folder)["status"] == "finished"
    assert summary(folder)["reason"] is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (DataError("no images."), "failed", "no images."),
        (KeyboardInterrupt(), "stopped", "Ctrl-C"),
        (SystemExit(143), "stopped", "exit code 143"),
    ],
)
def test_a_run_that_broke_off_says_why_and_raises(folder: RunDirectory, error, status: str, reason: str):
    with pytest.raises(type(error)), folder.recording(CFG, []):
        raise error
    assert (summary(folder)["status"], summary(folder)["reason"]) == (status, reason)


def test_the_log_file_has_what_the_screen_has_and_the_traceback_of_an_error(folder: RunDirectory, capsys):
    with contextlib.suppress(DataError), folder.recording(CFG, []):
        logging.getLogger("imago.test").info("a line with é")
        raise DataError("no images.")
    assert capsys.readouterr().out == "a line with é\n"
    text = (folder.path / "train.log").read_text(encoding="utf-8")
    assert "a line with é" in text
    assert "Traceback" in text


def test_no_handler_stays_behind_for_the_next_trial(folder: RunDirectory):
    before = list(logging.getLogger("imago").handlers)
    with folder.recording(CFG, []):
        pass
    assert logging.getLogger("imago").handlers == before


def test_settings_are_kept_resolved_and_latest_points_here(folder: RunDirectory, tmp_path: Path):
    (tmp_path / "latest").symlink_to("elsewhere")
    with folder.recording(CFG, ["seed=3"]):
        pass
    assert OmegaConf.load(folder.path / "config.yaml").a == 3
    assert json.loads((folder.path / "provenance.json").read_text())["overrides"] == ["seed=3"]
    assert (tmp_path / "latest").resolve() == folder.path.resolve()


def test_a_resumed_run_keeps_its_past_and_refuses_other_data(folder: RunDirectory, tmp_path: Path):
    with folder.recording(CFG, ["seed=3"]):
        folder.provenance_facts(data="abc", device="cpu")
        folder.update(test={"acc": 1.0})
    again = RunDirectory(folder.path, tmp_path)
    with again.recording(CFG, []):
        assert summary(again)["test"] == {"acc": 1.0}
        with pytest.raises(DataError, match="was started on other data .fingerprint abc, now xyz"):
            again.provenance_facts(data="xyz", device="cpu")
    provenance = json.loads((folder.path / "provenance.json").read_text())
    assert (provenance["data"], len(provenance["resumes"])) == ("abc", 1)


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    folder = RunDirectory(tmp_path / "run", tmp_path)
    with folder.recording(CFG, []):
        folder.update(test=1)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path):
    refuse_used_folder(tmp_path, "new")
    (tmp_path / "summary.json").touch()
    with pytest.raises(ConfigError, match="run_name=old: .* already holds a run"):
        refuse_used_folder(tmp_path, "old")


def test_a_place_that_cannot_be_written_is_found_out_at_once(tmp_path: Path):
    make_writable(tmp_path / "new" / "place", "output=DIR")
    assert list((tmp_path / "new" / "place").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/below cannot be written: .*; choose another .* output=DIR\.$"):
        make_writable(tmp_path / "file" / "below", "output=DIR")


def test_a_summary_that_a_power_cut_emptied_and_what_a_kill_left_behind_lose_no_run(folder: RunDirectory):
    with folder.recording(CFG, []):
        pass
    (folder.path / "summary.json").write_text("")
    (folder.path / "summary.json.1.2.part").write_text('{"sta')
    with RunDirectory(folder.path, folder.log_dir).recording(CFG, []):
        pass
    assert summary(folder)["status"] == "finished"
    assert not list(folder.path.glob("*.part"))


def test_a_failed_rank_is_not_forgotten_by_what_the_main_process_still_writes(folder: RunDirectory):
    with folder.recording(CFG, []):
        write_failure_file(folder.path, Failure("1", 0.0, "killed by signal 9"))
        folder.mark_failed()
        folder.update(epochs=2)  # an epoch ended just then; this process may be killed before it can say more
        told = summary(folder)
    assert (told["status"], told["reason"], told["epochs"]) == ("failed", "rank 1: killed by signal 9", 2)
