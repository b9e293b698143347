"""Fixtures of the sweep tests: a project whose train.py trains in milliseconds."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imago.cli.search_space import parse_space
from imago.sweep import trial_run
from imago.sweep.driver import Driver
from imago.sweep.running_trial import Plan
from imago.sweep.study import open_study

SETTINGS = {
    "sampler": "grid", "n_trials": None, "max_hours": None, "pruner": "none", "parallel": 1, "fail_fast": False,
    "seed": 0, "storage": None, "objective": "val/acc",
}  # fmt: skip


DRIVER = """
import sys
from pathlib import Path
from imago.sweep import driver, running_trial, trial_run
from imago.cli.search_space import parse_space
from imago.sweep.study import open_study
trial_run.PROJECT_ROOT, driver._POLL_S = Path(sys.argv[1]), 0.02
settings = {settings!r}
space = parse_space(sys.argv[3:], settings["space"], None)
plan = running_trial.Plan(Path(sys.argv[2]), space, settings, True, 1, [])
driver.Driver(plan, open_study(plan.directory, settings, space)).run(lambda: None)
"""


@pytest.fixture
def fake_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace train.py by one that trains in milliseconds; return a directory for sweeps."""
    (tmp_path / "src").mkdir()
    shutil.copy(Path(__file__).with_name("fake_train.py"), tmp_path / "src" / "train.py")
    monkeypatch.setattr(trial_run, "PROJECT_ROOT", tmp_path)
    return tmp_path / "sweeps"


@pytest.fixture
def new_driver(fake_project: Path):
    """Create the driver of a sweep from its arguments; called twice with a name, it continues the sweep."""

    def create(*arguments: str, name: str = "x", direction: Any = "maximize", space: Any = None, **settings) -> Driver:
        parsed = parse_space(arguments, space or {}, None)
        plan = Plan(fake_project / name, parsed, SETTINGS | {"direction": direction} | settings, True, 1, [])
        plan.directory.mkdir(parents=True, exist_ok=True)
        return Driver(plan, open_study(plan.directory, plan.settings, parsed))

    return create


@pytest.fixture
def start_driver(fake_project: Path):
    """Start a driver of the sweep `x` in a process of its own."""

    def start(*arguments: str, **settings) -> subprocess.Popen:
        (fake_project / "x").mkdir(parents=True, exist_ok=True)
        script = DRIVER.format(settings=SETTINGS | {"direction": "maximize", "space": {}} | settings)
        directories = [str(fake_project.parent), str(fake_project / "x")]
        return subprocess.Popen([sys.executable, "-c", script, *directories, *arguments])

    return start
