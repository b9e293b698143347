"""The driver of a sweep: it runs, continues, adopts, prunes and stops training processes."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from imago.errors import ConfigError
from imago.sweep import driver as driver_module
from imago.sweep.driver import Driver, handle_signals
from imago.sweep.trial_run import TrialRun

SLOW = ("epochs=4", "pause_s=0.3")


@pytest.fixture(autouse=True)
def _fast_polling(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver_module, "_POLL_S", 0.02)


def run(driver: Driver) -> list[tuple[dict[str, str], TrialState, float | None]]:
    driver.run(lambda: None)
    return trials(driver)


def trials(driver: Driver) -> list[tuple[dict[str, str], TrialState, float | None]]:
    found = driver.study.get_trials(deepcopy=False)
    return [(trial.params, trial.state, trial.values[0] if trial.values else None) for trial in found]


def test_a_grid_runs_in_order_and_its_values_are_the_best_of_each_run(new_driver, fake_project: Path):
    driver = new_driver("lr=0.1,0.3", "epochs=2")
    results = run(driver)
    assert results == [({"lr": "0.1"}, TrialState.COMPLETE, 0.95), ({"lr": "0.3"}, TrialState.COMPLETE, 0.75)]
    assert [json.loads((fake_project / "x" / name / "trial.json").read_text())["overrides"] for name in "01"] == [
        ["epochs=2", "lr=0.1"], ["epochs=2", "lr=0.3"],
    ]  # fmt: skip


def test_the_value_of_a_setting_is_the_mean_over_its_seeds(new_driver):
    driver = new_driver("lr=0.1,0.3", "seed=1,2,3")
    expected = [(1 - abs(lr - 0.1) - 0.1) + 0.002 for lr in (0.1, 0.3)]  # the mean seed is 2
    assert [value for _, _, value in run(driver)] == pytest.approx(expected)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sampler_chooses_as_many_trials_as_asked_alike_in_each_sweep(new_driver, sampler: str):
    space = {"lr": "interval(0.01, 1)"}
    first = run(new_driver(name="a", space=space, sampler=sampler, n_trials=4))
    assert first == run(new_driver(name="b", space=space, sampler=sampler, n_trials=4))
    assert len({params["lr"] for params, _, _ in first}) == 4
    other = run(new_driver(name="c", space=space, sampler=sampler, n_trials=1, seed=1))
    assert other[0][0] != first[0][0]


def test_a_setting_that_is_chosen_again_is_not_trained_again(new_driver, fake_project: Path):
    driver = new_driver(space={"lr": "0.1,0.2"}, sampler="random", n_trials=6)
    results = run(driver)
    assert len({params["lr"]: value for params, _, value in results}) == 2
    assert len({(params["lr"], value) for params, _, value in results}) == 2
    assert len(list((fake_project / "x").glob("*/summary.json"))) == 2
    assert len(results) < 6  # both are tried


def test_a_setting_that_was_pruned_is_pruned_again(new_driver):
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.5}
    driver = new_driver("epochs=3", "pause_s=0.1", space={"lr": "0.1,0.9"}, sampler="random", n_trials=2, pruner=pruner)
    assert {(params["lr"], state.name) for params, state, _ in run(driver)} == {("0.1", "COMPLETE"), ("0.9", "PRUNED")}


def test_failures_of_an_earlier_start_are_named_again(new_driver):
    run(new_driver("fails=config,no"))
    assert [line.partition(":")[0] for line in new_driver("fails=config,no").failures] == ["trial 0 (fails=config)"]


@pytest.mark.slow
def test_with_a_database_another_directory_leaves_running_trials_alone(new_driver, fake_project: Path):
    storage = f"sqlite:///{fake_project.parent}/study.db"
    first = new_driver("lr=0.1,0.2", storage=storage)
    assert first._ask() is not None  # as if it ran
    other = new_driver("lr=0.1,0.2", storage=storage)
    other._owner = "another:/directory"
    assert [state.name for _, state, _ in run(other)] == ["RUNNING", "COMPLETE"]
    assert other.num_elsewhere == 1


def test_a_prune_that_was_decided_before_a_kill_is_not_forgotten(new_driver, fake_project: Path):
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 2}
    driver = new_driver("lr=0.1,0.2", *SLOW, pruner=pruner)
    driver._start_runs()
    running = driver._running[0]
    while running.pruned_at is None:
        running._prune()
    running.runs[0].process.kill()
    running.runs[0].process.wait()
    running.lock.close()  # as if the driver had been killed
    states = [state for _, state, _ in run(new_driver("lr=0.1,0.2", *SLOW, pruner=pruner))]
    assert states == [TrialState.PRUNED, TrialState.PRUNED]
    assert json.loads((fake_project / "x/0/summary.json").read_text())["reason"].endswith("after epoch 1")


def test_values_do_not_depend_on_a_kill_between_two_choices(new_driver):
    space = {"lr": "interval(0.01,1)", "wd": "interval(0,1)"}
    undisturbed = run(new_driver(space=space, sampler="random", n_trials=1, name="a"))
    driver = new_driver(space=space, sampler="random", n_trials=1, name="b")
    driver_module.set_sampler(driver.study, driver.plan.settings, 0)
    trial = driver.study.ask()
    driver_module.set_sampler(driver.study, driver.plan.settings, 0, "lr")
    driver.plan.space.parameters[0].suggest(trial)  # killed here
    assert run(driver) == undisturbed


def test_an_orphan_that_has_not_written_its_summary_is_stopped(new_driver, fake_project: Path):
    first = new_driver("lr=0.1", "lr2=1,2", "pause_s=30")
    first._start_runs()
    first._running[0].lock.close()
    second = new_driver("lr=0.1", "lr2=1,2", "pause_s=30")
    second._adopt()
    orphan = second._running[0].runs[0]
    assert orphan.process is None
    assert orphan.is_running()
    second._stop()
    assert first._running[0].runs[0].process.wait() != 0


def test_a_ranking_that_cannot_be_written_does_not_end_the_sweep(new_driver):
    driver = new_driver("lr=0.1,0.2")

    def report() -> None:
        raise OSError("No space left on device")

    driver.run(report)
    assert [state.name for _, state, _ in trials(driver)] == ["COMPLETE", "COMPLETE"]


def test_n_trials_is_the_total_over_several_starts(new_driver):
    run(new_driver("lr=0.1,0.2,0.3", n_trials=1))
    assert [state.name for _, state, _ in run(new_driver("lr=0.1,0.2,0.3", n_trials=2))] == [
        "COMPLETE", "COMPLETE", "WAITING",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fails", "reason"), [("config", "lr=-1 must be greater than 0."), ("later", "the loss is NaN in epoch 1")]
)
def test_a_run_that_fails_is_marked_with_its_reason_and_the_others_run(new_driver, fails: str, reason: str):
    driver = new_driver(f"fails={fails},no")
    assert [state for _, state, _ in run(driver)] == [TrialState.FAIL, TrialState.COMPLETE]
    assert driver.failures == [f"trial 0 (fails={fails}): failed: run 0: {reason}"]


def test_the_other_seeds_of_a_setting_run_where_one_fails(new_driver, fake_project: Path):
    driver = new_driver("crash_at=0", "seed=1,2")
    (fake_project / "x/1").mkdir(parents=True)
    (fake_project / "x/1/crashed").touch()  # so that the second one is not killed
    assert [state for _, state, _ in run(driver)] == [TrialState.FAIL]
    assert json.loads((fake_project / "x/1/summary.json").read_text())["status"] == "finished"


def test_a_run_that_is_killed_has_failed(new_driver):
    driver = new_driver("crash_at=0,no")
    assert [state for _, state, _ in run(driver)] == [TrialState.FAIL, TrialState.COMPLETE]
    assert "was killed by SIGKILL" in driver.failures[0]


def test_fail_fast_starts_nothing_after_a_failure(new_driver):
    driver = new_driver("fails=config,no", fail_fast=True)
    assert [state for _, state, _ in run(driver)] == [TrialState.FAIL, TrialState.WAITING]


def test_trials_in_parallel_give_the_same_values(new_driver):
    arguments = ("lr=0.1,0.2,0.3,0.4", "seed=1,2")
    assert run(new_driver(*arguments, name="a", parallel=3)) == run(new_driver(*arguments, name="b"))


@pytest.mark.slow
def test_the_pruner_stops_a_run_that_lags_behind(new_driver, fake_project: Path):
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1}
    driver = new_driver("lr=0.1,0.9", *SLOW, pruner=pruner)
    assert [state for _, state, _ in run(driver)] == [TrialState.COMPLETE, TrialState.PRUNED]
    summary = json.loads((fake_project / "x/1/summary.json").read_text())
    assert summary["status"] == "pruned"
    assert "after epoch 1" in summary["reason"]
    assert (fake_project / "x/1/checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_a_stop_signal_stops_the_run_and_the_next_start_continues_it(new_driver, fake_project: Path):
    driver = new_driver("lr=0.1,0.2", *SLOW)
    timer = threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with handle_signals(driver):
        assert run(driver)[0][1] == TrialState.RUNNING
    assert driver.stop_signal == signal.SIGTERM
    assert json.loads((fake_project / "x/0/summary.json").read_text())["status"] == "stopped"
    epochs_done = json.loads((fake_project / "x/0/checkpoints/last.ckpt").read_text())["epoch"]
    assert 0 < epochs_done < 4
    del driver  # its locks
    assert run(new_driver("lr=0.1,0.2", *SLOW)) == run(new_driver("lr=0.1,0.2", "epochs=4", name="undisturbed"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "kills_child"),
    [
        ("grid", True),
        ("tpe", False),
        *(
            pytest.param(sampler, kills, marks=pytest.mark.soak)
            for sampler, kills in [("grid", False), ("tpe", True)] * 5
        ),
    ],
)
def test_a_killed_driver_is_continued_to_the_same_numbers(
    new_driver, start_driver, fake_project: Path, sampler: str, kills_child: bool
):
    values = "0.1,0.2,0.3,0.4" if sampler == "grid" else "interval(0.01,1)"
    settings = {"sampler": sampler, "n_trials": 4, "space": {"lr": values}}
    process = start_driver(*SLOW, **settings)
    second = fake_project / "x/1"
    while not (second / "checkpoints/last.ckpt").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    if kills_child:
        os.kill(json.loads((second / "summary.json").read_text())["pid"], signal.SIGKILL)
    continued = run(new_driver(*SLOW, **settings))
    expected = run(new_driver("epochs=4", name="undisturbed", **settings))
    assert continued == expected


@pytest.mark.slow
def test_several_drivers_share_a_sweep(new_driver, start_driver):
    values = ",".join(str(index / 10) for index in range(1, 7))
    arguments = (f"lr={values}", "epochs=2", "pause_s=0.1")
    assert [process.wait() for process in [start_driver(*arguments) for _ in range(3)]] == [0, 0, 0]
    shared = trials(new_driver(*arguments))
    assert shared == run(new_driver(f"lr={values}", "epochs=2", name="alone"))


def test_a_directory_with_other_runs_is_refused_and_one_with_the_same_runs_taken_over(new_driver, fake_project: Path):
    first = run(new_driver("lr=0.1,0.2"))
    (fake_project / "x/study.journal").unlink()
    assert run(new_driver("lr=0.1,0.2")) == first
    (fake_project / "x/study.journal").unlink()
    with pytest.raises(ConfigError, match=r"x/0 holds a run with other settings, which the storage .* does not know"):
        run(new_driver("lr=0.3,0.4"))
    assert "lr=0.1" in json.loads((fake_project / "x/0/trial.json").read_text())["overrides"]


def test_runs_that_are_gone_are_named(new_driver, fake_project: Path):
    run(new_driver("lr=0.1,0.2", "seed=1,2"))
    assert new_driver("lr=0.1,0.2", "seed=1,2").missing_runs() == []
    shutil.rmtree(fake_project / "x/2")
    assert new_driver("lr=0.1,0.2", "seed=1,2").missing_runs() == ["1"]


def test_a_setting_whose_first_run_ends_before_it_is_stopped_is_pruned_all_the_same(new_driver, fake_project: Path):
    script = fake_project.parent / "src" / "train.py"
    ending = "    signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(0.3)\n"  # it only writes its results
    text, last = script.read_text(), '    epochs = len(state["values"])\n'
    assert text.count(last) == 1
    script.write_text(text.replace(last, ending + last))
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 2}
    driver = new_driver("lr=0.1", "epochs=1", "seed=1,2", pruner=pruner)
    run(driver)
    assert [trial.state.name for trial in driver.study.get_trials()] == ["PRUNED"]
    assert driver.failures == []


def test_every_run_of_a_pruned_setting_is_pruned(new_driver, fake_project: Path):
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.5}
    run(new_driver("lr=0.9", *SLOW, "seed=1,2", parallel=2, pruner=pruner))
    statuses = [json.loads((fake_project / f"x/{name}/summary.json").read_text())["status"] for name in "01"]
    assert statuses == ["pruned", "pruned"]


def test_the_time_of_a_search_counts_from_its_first_trial_also_after_a_restart(new_driver):
    settings = {"space": {"lr": "interval(0.1,0.2)"}, "sampler": "random", "n_trials": 3}
    assert len(run(new_driver(**settings | {"n_trials": 1}))) == 1
    assert len(run(new_driver(**settings, max_hours=1e-6))) == 1
    assert len(run(new_driver(**settings, max_hours=1))) == 3


def test_a_process_of_another_machine_is_not_signalled(new_driver, fake_project: Path):
    driver = new_driver("lr=0.1", *SLOW)
    driver._start_runs()
    first = driver._running[0].runs[0]
    adopted = TrialRun(first.path, first.overrides)
    assert adopted._adopted_pid() == first.process.pid
    lock = first.path / ".trial.lock"
    lock.write_text(str(os.getpid()))  # the number of another process here
    assert adopted._adopted_pid() == 0
    first.process.kill()
    first.process.wait()
