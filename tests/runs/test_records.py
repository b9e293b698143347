"""Run directories as records: which directories are runs, damaged files, and runs that have not ended."""

import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import make_run

from imago.errors import DataError
from imago.paths import PROJECT_ROOT
from imago.runs.records import (
    differing_settings,
    read_logged,
    read_record,
    read_records,
    read_settings,
    summary_metrics,
    unfinished_note,
)

NO_PID = 2**30  # above the largest process number of Linux


def test_runs_are_found_at_any_depth_and_a_link_is_no_second_run(tmp_path: Path):
    for name in ("train/a", "sweeps/s/0", "sweeps/s/1"):
        make_run(tmp_path / name)
    (tmp_path / "latest").symlink_to("train/a")
    assert [record.run for record in read_records(tmp_path)] == ["sweeps/s/0", "sweeps/s/1", "train/a"]
    assert read_records(tmp_path / "latest")[0].run_dir == str(tmp_path / "train" / "a")


def test_a_run_that_never_trained_is_in_no_table(tmp_path: Path):
    for status in ("failed", "stopped", "running", "finished"):
        run = make_run(tmp_path / status, status=status, reason="no images", pid=NO_PID, test=None)
        (run / "metrics.csv").unlink()
    for name in ("logged", "saved"):
        (make_run(tmp_path / name, status="failed") / "metrics.csv").rename(tmp_path / name / "metrics.csv")
    (tmp_path / "saved" / "metrics.csv").unlink()
    (tmp_path / "saved" / "checkpoints").mkdir()
    (tmp_path / "saved" / "checkpoints" / "last.ckpt").touch()
    assert [record.run for record in read_records(tmp_path)] == ["finished", "logged", "saved"]
    notes = {name: unfinished_note(tmp_path / name) for name in ("failed", "stopped", "running", "finished", "none")}
    died = "died, its process ended without a status: killed, or the machine was shut down"
    expected = {"failed": "failed, no images", "stopped": "stopped, no images", "running": died}
    expected = {name: f"the run has not finished: {text}" for name, text in expected.items()}
    assert notes == expected | {"finished": "", "none": ""}


def test_a_run_has_died_if_nobody_holds_its_lock_also_if_its_process_number_is_in_use(tmp_path: Path):
    run = make_run(tmp_path / "a", status="running", pid=os.getppid())
    assert read_record(run).status == "running"
    (run / ".lock").touch()
    assert read_record(run).status == "died"
    code = "import sys, pathlib; from imago.runs.run_directory import lock_directory as lock\n"
    code += "with lock(pathlib.Path(sys.argv[1])): print('locked', flush=True); input()"
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, cwd=PROJECT_ROOT / "src") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert read_record(run).status == "running"
        process.kill()
    assert read_record(run).status == "died"


def test_a_directory_within_a_run_is_no_run(tmp_path: Path):
    run = make_run(tmp_path / "a")
    (run / "export").mkdir()
    (run / "export" / "summary.json").write_text("{}")
    assert len(read_records(tmp_path)) == 1


def test_a_run_killed_at_its_very_start_is_named_with_the_reason(tmp_path: Path):
    (make_run(tmp_path / "a") / "summary.json").unlink()
    (record,) = read_records(tmp_path)
    assert (record.status, record.settings["optimizer.lr"]) == ("unreadable", 0.1)
    assert record.reason == f"{tmp_path / 'a' / 'summary.json'} is missing"


def test_values_that_are_not_finite_numbers_are_left_out(tmp_path: Path):
    record = read_record(make_run(tmp_path / "b", seconds="long", epochs=True, images_per_s=None))
    assert (record.seconds, record.epochs, record.images_per_s, record.best_epoch) == (None, None, None, 2)
    run = make_run(tmp_path / "a", seconds=math.nan, val=None, test={"acc": math.nan, "interval_95": [math.nan, 1]})
    (run / "metrics.csv").write_text("step,val/acc\n1,nan\n2,0.5\n")
    record = read_record(run)
    assert (record.seconds, record.test_acc, record.test_low, record.val_acc) == (None, None, None, 0.5)


def test_further_metrics_have_their_logged_names_and_a_task_may_lack_the_accuracy(tmp_path: Path):
    test = {"loss": 0.5, "f1": 0.6, "auroc": math.nan, "num_images": 10}
    record = read_record(make_run(tmp_path / "a", val={"f1": 0.7, "monitor": "val/f1", "acc": 0.8}, test=test))
    assert record.metrics == {"val/f1": 0.7, "test/loss": 0.5, "test/f1": 0.6}
    assert (record.val_acc, record.test_acc, record.test_low, record.num_test_images) == (0.8, None, None, 10)


def test_a_running_run_has_its_best_validation_so_far(tmp_path: Path):
    run = make_run(tmp_path / "a", status="running", val=None, test=None)
    assert read_record(run).val_acc == 0.7
    (run / "metrics.csv").write_text("step,lr\n1,0.1\n")
    assert read_record(run).val_acc is None


def test_a_best_epoch_without_validation_has_no_accuracy_of_another_epoch(tmp_path: Path):
    run = make_run(tmp_path / "a", val={"monitor": "train/loss"}, best_epoch=5)  # trainer.check_val_every_n_epoch=2
    assert max(read_logged(run)["val/acc"][1]) == 0.7
    assert (read_record(run).val_acc, read_record(run).best_epoch) == (None, 5)


def test_logged_values_have_their_steps(tmp_path: Path):
    logged = read_logged(make_run(tmp_path / "a"))
    assert logged["val/acc"] == ([9.0, 19.0], [0.4, 0.7])
    assert logged["lr"] == ([4.0, 19.0], [0.1, 0.05])


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is missing"), ("lr\n0.1\n", "cannot be read"), ("step,lr\n1,0.1,7\n", "cannot"), ("step\nx\n", "cannot")],
)
def test_a_damaged_log_is_named(content: str | None, words: str, tmp_path: Path):
    file = make_run(tmp_path / "a") / "metrics.csv"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(DataError, match=f"{file} {words}"):
        read_logged(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is missing"),
        ("", "is damaged: it holds no settings"),
        ("- 1", "is damaged: it holds no settings"),
        ("{", "cannot be read: "),
        ("a: !!python/name:os.system", "cannot be read: "),
        ("[" * 1_500, "cannot be read: "),
    ],
)
def test_a_damaged_config_is_named_and_the_results_stay(content: str | None, words: str, tmp_path: Path):
    file = make_run(tmp_path / "a") / "config.yaml"
    file.unlink() if content is None else file.write_text(content)
    record = read_record(tmp_path / "a")
    assert (record.status, record.test_acc, record.settings) == ("finished", 0.6, {})
    assert (record.config_error or "").startswith(f"{file} {words}")
    with pytest.raises(DataError, match="config.yaml"):
        read_settings(tmp_path / "a")


@pytest.mark.parametrize(
    "content",
    [
        *(
            '{"epochs": 3}',
            "[" * 100_000,
            '{"status": "finished", "started": 5}',
            '{"status": "secret"}',
            '{"status": ["finished"]}',
        ),
        f'{{"status": "running", "pid": {10**30}}}',
    ],
)
def test_a_summary_with_wrong_types_is_unreadable(content: str, tmp_path: Path):
    run = make_run(tmp_path / "a")
    (run / "summary.json").write_text(content)
    (run / "provenance.json").write_text(json.dumps({"host": platform.node()}))
    assert read_record(run).status == "unreadable"


def test_the_target_of_a_link_is_not_read(tmp_path: Path):
    run = make_run(tmp_path / "a")
    (run / "summary.json").rename(tmp_path / "private.json")
    (run / "summary.json").symlink_to(tmp_path / "private.json")
    record = read_records(tmp_path)[0]
    assert (record.status, record.started) == ("unreadable", None)
    assert "summary.json is a link" in (record.reason or "")


@pytest.mark.slow
def test_tables_and_pages_do_not_load_torch_or_plotting():
    modules = {
        "imago.runs.records, imago.analysis.report": "torch pandas matplotlib jinja2 numpy",
        "imago.analysis.table, imago.analysis.run_page, imago.analysis.comparison": "torch",
    }
    code = "".join(
        f"import sys, {names}; print(set({heavy!r}.split()) & set(sys.modules));" for names, heavy in modules.items()
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT / "src", capture_output=True, text=True)
    assert done.stdout == "set()\nset()\n", done.stderr


def test_metrics_have_their_logged_names_and_only_finite_numbers_count():
    val = {"acc": 0.5, "f1": 0.25, "monitor": "val/f1", "interval_95": [0.1, 0.9], "num_images": 10}
    test = {"loss": 1, "auroc": math.nan, "f1": None, "huge": 10**400, "ok": True, "num_left_out": 0, "tta": "flip"}
    assert summary_metrics({"val": val, "test": test}) == {"val/acc": 0.5, "val/f1": 0.25, "test/loss": 1}
    assert summary_metrics({"val": None}) == {}


def test_whether_a_run_was_tested_is_no_setting_that_runs_differ_in(tmp_path: Path):
    configs = {"tested": {"test": True}, "in_a_sweep": {"test": False, "sweep_name": "lr"}}
    runs = [make_run(tmp_path / name, config=config) for name, config in configs.items()]
    assert differing_settings([read_record(run).settings for run in runs]) == []
