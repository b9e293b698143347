"""Command lines with `resume=`: saved settings come first, typed ones override them."""

import json
from pathlib import Path

import pytest

from imago.cli.resume import resume_arguments
from imago.errors import ConfigError
from imago.paths import quote_for_hydra


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run directory that was started with three settings."""
    run_dir = tmp_path / "train" / "größe, run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "last.ckpt").touch()
    overrides = ["model=simple_cnn", "optimizer.lr=0.1", "+callbacks.mine={a: 1}", "+trust=[os]", 'resume="elsewhere"']
    (run_dir / "provenance.json").write_text(json.dumps({"overrides": overrides}))
    return run_dir


def test_a_command_line_without_resume_is_unchanged(tmp_path: Path):
    typed = ["-m", "seed=1", "resume=null"]
    assert resume_arguments(typed, tmp_path) == (typed, [])


def test_saved_settings_come_first_and_typed_ones_override_them(run: Path, tmp_path: Path):
    typed = f"resume={quote_for_hydra(str(run))}"
    arguments = resume_arguments(["-m", typed, "optimizer.lr=0.5", "seed=3"], tmp_path)
    assert arguments.merged == [
        *("-m", "model=simple_cnn", "optimizer.lr=0.5", "+callbacks.mine={a: 1}", typed, "seed=3"),
        typed.replace("resume=", "hydra.run.dir="),
    ]
    assert arguments.saved == ["model=simple_cnn", "+callbacks.mine={a: 1}"]


@pytest.mark.parametrize("plus", ["", "+"])
def test_a_setting_that_the_run_added_is_added_with_its_new_value(run: Path, tmp_path: Path, plus: str):
    arguments = resume_arguments([f"resume={quote_for_hydra(str(run))}", f"{plus}callbacks.mine=null"], tmp_path)
    assert "+callbacks.mine=null" in arguments.merged
    assert not any("mine" in text for text in arguments.saved)


def test_auto_continues_a_run_with_a_checkpoint_and_starts_a_new_one(run: Path, tmp_path: Path):
    arguments = resume_arguments([f"run_name={quote_for_hydra(run.name)}", "resume=auto"], tmp_path)
    assert f"hydra.run.dir={quote_for_hydra(str(run))}" in arguments.merged
    (run / "checkpoints" / "last.ckpt").unlink()  # it ended before its first checkpoint
    for name in ("new", quote_for_hydra(run.name)):
        typed = [f"run_name={name}", "resume=auto", "seed=3"]
        assert resume_arguments(typed, tmp_path) == (typed, [])


def test_auto_without_a_name_and_a_directory_without_a_run_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="resume=auto needs run_name=NAME"):
        resume_arguments(["resume=auto"], tmp_path)
    with pytest.raises(ConfigError, match="is not a run directory: it has no readable provenance.json; type a run"):
        resume_arguments([f"resume={tmp_path}"], tmp_path)
    with pytest.raises(ConfigError, match="/none does not exist; type a run directory"):
        resume_arguments([f"resume={tmp_path}/none"], tmp_path)
