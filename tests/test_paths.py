"""Paths are printed short and reach Hydra unchanged."""

import ntpath
import shlex
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest

from imago.paths import PROJECT_ROOT, command, executable, quote_for_hydra, register_resolvers, short_path


def test_a_path_below_the_working_directory_is_printed_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "logs" / "run") == "logs/run"
    assert short_path(Path("/etc")) == "/etc"


def test_a_path_on_another_drive_of_windows_is_printed_whole_and_with_slashes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("imago.paths.os", SimpleNamespace(sep="\\", path=ntpath))
    assert short_path(PureWindowsPath(r"D:\logs\run")) == "D:/logs/run"  # type: ignore[arg-type]


def test_a_printed_path_is_relative_if_that_is_shorter_and_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "a\x1b[2J\nb") == r"a\x1b[2J\nb"
    assert short_path(Path("/a\nb")) == r"/a\nb"


def test_a_printed_command_works_from_any_directory_and_without_an_activated_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(PROJECT_ROOT)
    monkeypatch.setattr(sys, "argv", ["src/train.py", "--config-dir", "my configs", "-m", "seed=1,2"])
    assert command("eval") == "python src/eval.py"
    assert command("train") == "python src/train.py --config-dir 'my configs'"
    monkeypatch.setattr(sys, "argv", ["src/train.py", "--config-dir=mine"])
    assert command("check") == "python src/check.py --config-dir=mine"
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    for name in ("train", "report"):
        python, script, *_ = shlex.split(command(name))
        assert Path(python).samefile(sys.executable)
        assert Path(script).samefile(PROJECT_ROOT / "src" / f"{name}.py")
    assert Path(executable("tensorboard")).parent.samefile(Path(sys.executable).parent)


@pytest.mark.parametrize("value", ["a b", "a,b", "x=y", "[1]", 'say "hi"', "back\\", "Blüten", "~", "50%"])
def test_a_quoted_value_comes_back_from_hydra_unchanged(value: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert str(OverridesParser.create().parse_override(f"key={quote_for_hydra(value)}").value()) == value


def test_the_project_root_holds_configs_and_src():
    from omegaconf import OmegaConf

    register_resolvers()
    root = Path(OmegaConf.create({"root": "${project_root:}"}).root)
    assert root == PROJECT_ROOT
    assert (root / "configs" / "train.yaml").is_file()
    assert (root / "src" / "train.py").is_file()
