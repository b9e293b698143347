"""A sweep from its plan to its end: what it prints, tests and raises."""

import json
import math
import os
import shutil
import signal
import threading
from pathlib import Path

import optuna
import pytest

from imago.cli.search_space import parse_space
from imago.errors import ConfigError, DataError, IncompleteError
from imago.sweep import driver, run
from imago.sweep.run import run_sweep


@pytest.fixture
def sweep(new_driver, monkeypatch: pytest.MonkeyPatch):
    """Run a sweep whose runs train in milliseconds and are tested by a stand-in for eval.py."""
    monkeypatch.setattr(driver, "_POLL_S", 0.02)
    tested: list[str] = []

    def test(path: Path, plan, driver) -> dict:
        tested.append(path.name)
        return {"acc": 0.5, "interval_95": [0.4, 0.6], "num_images": 100}

    monkeypatch.setattr(run, "_test", test)

    def start(*arguments: str, is_continued: bool = False, **settings) -> tuple[float, list[str]]:
        plan = new_driver("lr=0.1", name="unused", **settings).plan
        plan = plan._replace(directory=plan.directory.with_name("x"), space=parse_space(arguments, {}, None))
        tested.clear()
        return run_sweep(plan, is_continued), [*tested]

    return start


def test_the_runs_of_the_best_setting_are_tested_once(sweep, fake_project: Path, capsys):
    value, tested = sweep("lr=0.4,0.1,0.3", "seed=1,2", "pause_s=0")
    assert (value, tested) == (pytest.approx(0.9015), ["2", "3"])
    printed = capsys.readouterr().out
    assert "test of the best setting, chosen by val/acc: 50.00 % ± 0.00 over 2 runs, 100 images" in printed
    assert "src/train.py -m pause_s=0 lr=0.1 seed=3,4,5\n" in printed  # seeds that are new
    assert sweep("lr=0.4,0.1,0.3", "seed=1,2", "pause_s=0", is_continued=True) == (pytest.approx(0.9015), [])
    assert json.loads((fake_project / "x/sweep.json").read_text())["test"]["runs"] == ["2", "3"]


@pytest.mark.parametrize("test", [{}, {"loss": 0.3, "acc": 0.5}, {"loss": 0.3}])
def test_a_task_without_an_accuracy_ends_its_sweep_with_the_reason(
    sweep, fake_project: Path, monkeypatch: pytest.MonkeyPatch, capsys, test: dict
):
    monkeypatch.setattr(run, "_test", lambda path, plan, driver: test)
    assert sweep("lr=0.1", "seed=1,2", "pause_s=0")[0] == pytest.approx(0.9015)
    assert "test of the best setting: it has no accuracy with an interval\n" in capsys.readouterr().out
    assert (fake_project / "x" / "ranking.csv").exists()


def test_a_sweep_of_seeds_without_a_test_is_not_tested(new_driver, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(driver, "_POLL_S", 0.02)
    monkeypatch.setattr(run, "_test", lambda path, plan, driver: pytest.fail("the test split is read"))
    plan = new_driver("lr=0.1", name="unused").plan
    space = parse_space(["lr=0.1", "seed=1,2", "pause_s=0"], {}, None)
    run_sweep(plan._replace(directory=plan.directory.with_name("x"), space=space, is_tested=False), False)
    assert "test of" not in capsys.readouterr().out


def test_a_database_that_is_lost_is_one_line(sweep, monkeypatch: pytest.MonkeyPatch):
    def lose(self, finish) -> None:
        raise optuna.exceptions.StorageInternalError("database is locked\nmore")

    monkeypatch.setattr(driver.Driver, "run", lose)
    with pytest.raises(
        DataError, match=r"^sweep\.storage=None: database is locked; repeat .* with sweep_name=x resume=auto\.$"
    ):
        sweep("lr=0.1", "pause_s=0")


def test_failed_trials_are_listed_and_the_others_ranked(sweep, capsys):
    with pytest.raises(IncompleteError, match=r"1 trial failed\ntrial 0 \(fails=later\).*the loss is NaN") as error:
        sweep("fails=later,no")
    assert error.value.exit_code == 1
    ranked = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("1 ")]
    assert ranked == [["1", "0.9000"]]


def test_nothing_is_tested_where_everything_failed(sweep):
    with pytest.raises(IncompleteError, match="2 trials failed"):
        sweep("fails=later,config")


def test_a_directory_that_holds_a_sweep_needs_resume(sweep):
    assert not math.isnan(sweep("lr=0.1,0.2")[0])
    with pytest.raises(ConfigError, match=r"already holds a sweep: type resume=auto to continue it"):
        sweep("lr=0.1,0.2")
    with pytest.raises(ConfigError, match=r"is a sweep with other values \(lr=0.1,0.2; now lr=0.1,0.3\)"):
        sweep("lr=0.1,0.3", is_continued=True)


@pytest.mark.slow
def test_a_study_in_a_database_is_continued_only_on_request(sweep, fake_project: Path):
    storage = f"sqlite:///{fake_project.parent}/study.db"
    sweep("lr=0.1,0.2", storage=storage)
    shutil.rmtree(fake_project / "x")
    with pytest.raises(ConfigError, match=r"already holds a sweep x: type resume=auto"):
        sweep("lr=0.1,0.2", storage=storage)


def test_a_sweep_that_failed_fast_is_tested_when_all_else_has_run(sweep, capsys):
    with pytest.raises(IncompleteError):
        sweep("fails=later,no,never", fail_fast=True)
    assert "test of the best setting" not in capsys.readouterr().out
    with pytest.raises(IncompleteError):
        sweep("fails=later,no,never", fail_fast=True, is_continued=True)
    assert "test of the best setting, chosen by val/acc: 50.00 %" in capsys.readouterr().out


def test_a_signal_ends_the_final_test_and_says_how_to_continue(sweep, monkeypatch: pytest.MonkeyPatch, capsys):
    def evaluate(path: Path, plan, driver) -> dict:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert driver.run_command(["sleep", "60"], os.environ) is None
        return {"reason": "stopped"}

    monkeypatch.setattr(run, "_test", evaluate)
    with pytest.raises(SystemExit) as error:
        sweep("lr=0.1,0.2")
    assert error.value.code == 143
    assert "stopped; to continue: " in capsys.readouterr().out
