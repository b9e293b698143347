"""Settings of a sweep that cannot work are one line, before anything is started."""

from collections.abc import Callable
from pathlib import Path

import pytest

GRID = ("experiment=quickstart", "optimizer.lr=1e-3,2e-3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("experiment=quickstart",), "-m: no setting has several values"),
        ((*GRID, "test=false"), "test: a search is ranked by val"),
        ((*GRID, "resume=auto"), "resume=auto needs sweep_name=NAME"),
        ((*GRID, "sweep_name=a,b"), "sweep_name=a,b: a sweep has one"),
        ((*GRID, "sweep=optuna,random"), "sweep=optuna,random: a sweep has one"),
        ((*GRID, "sweep=[]"), "sweep=[]: a sweep has one"),
        ((*GRID, "sweep.n_trials=2,3"), "sweep.n_trials=2,3: a setting of the sweep itself has one value"),
        ((*GRID, "sweep.max_hours=nan"), "sweep.max_hours=nan must be greater than 0"),
        (
            (*GRID, "sweep.direction=minimize"),
            "sweep.direction=minimize: the best checkpoint of a run is chosen by val/acc",
        ),
        ((*GRID, "sweep.objective=test/acc"), "sweep.objective=test/acc: settings are chosen by validation"),
        ((*GRID, "sweep=random", "sweep.n_trials=2", "sweep.sampler=cmaes"), "sweep.sampler=cmaes is not one of"),
        (("experiment=quickstart", "optimizer.lr=range(3,1)"), "optimizer.lr=range(3,1) has no values"),
        (("experiment=quickstart", "optimizer.lr=glob(*)"), "optimizer.lr=glob(*) has no values"),
        (
            ("sweep=random", "sweep.n_trials=2", "seed=int(interval(1,5))"),
            "seed=int(interval(1,5)): seed repeats each setting; list its values",
        ),
        (
            ("experiment=quickstart", "callbacks.best_checkpoint.monitor=val/acc,val/loss"),
            "callbacks.best_checkpoint.monitor has several values: type sweep.objective=val/acc",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_sweep_that_cannot_work_is_refused_in_one_line(
    without_torch: Callable, tmp_path: Path, arguments: tuple[str, ...], line: str
):
    done = without_torch("src/train.py", "-m", *arguments, f"paths.log_dir={tmp_path}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: {line}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("trial.json"))
