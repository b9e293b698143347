"""Fixtures of the sweep tests: a project whose train.py trains in milliseconds."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from imago.cli.search_space import parse_space
from imago.sweep import trial_run
from imago.sweep.driver import Driver
from imago.sweep.running_trial import Plan
from imago.sweep.study import open_study

SETTINGS = {
    "sampler": "grid", "n_trials": None, "max_hours": None, "pruner": "none", "parallel": 1, "fail_fast": False,
    "seed": 0, "storage": None, "objective": "val/acc",
}  # fmt: skip


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
def parser() -> OverridesParser:
    return OverridesParser.create()
