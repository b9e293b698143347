"""Paths are printed short and reach Hydra unchanged."""

from pathlib import Path

import pytest

from imago.paths import PROJECT_ROOT, quote_for_hydra, register_resolvers, short_path


def test_a_path_below_the_working_directory_is_printed_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "logs" / "run") == "logs/run"
    assert short_path(Path("/etc")) == "/etc"


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
