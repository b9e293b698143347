"""A trial of a sweep in a process of its own: its result, and how its failure is recorded."""

import json
from pathlib import Path

import pytest

from imago.errors import UserError
from imago.training import trial
from imago.training.trial import run_trial

# Writes what it was started with to the directory that it was given, and exits as the file `exit_code` says.
CHILD = """
import json, os, sys
from pathlib import Path
*typed, directory = sys.argv[1:]
run_dir = Path(directory.removeprefix('hydra.run.dir=').strip('"'))
summary = {"status": "running", "typed": typed, "ranks": "LOCAL_RANK" in os.environ}
(run_dir / "summary.json").write_text(json.dumps(summary))
sys.exit(int((run_dir / "exit_code").read_text()))
"""


@pytest.fixture
def run_child_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a trial whose process ends with an exit code."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(CHILD)
    monkeypatch.setattr(trial, "PROJECT_ROOT", tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")

    def run(exit_code: int) -> None:
        (tmp_path / "exit_code").write_text(str(exit_code))
        run_trial(["seed=1", "run_name=sweep"], tmp_path)

    return run


def test_a_trial_has_its_own_settings_and_directory(run_child_trial, tmp_path: Path):
    run_child_trial(0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["typed"], summary["ranks"]) == (["seed=1"], False)


@pytest.mark.parametrize(("exit_code", "kind"), [(2, UserError), (1, RuntimeError)])
def test_a_trial_that_ends_early_is_recorded_as_failed(run_child_trial, tmp_path: Path, exit_code: int, kind: type):
    with pytest.raises(kind, match=rf"ended with exit code {exit_code}; see .*train\.log"):
        run_child_trial(exit_code)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
