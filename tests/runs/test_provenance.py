"""The provenance of a run names its command, code, packages and machine."""

import json
import subprocess

import pytest

from imago.paths import PROJECT_ROOT
from imago.runs import provenance


def test_the_provenance_is_plain_data_with_the_settings_and_package_versions():
    found = provenance.collect_provenance(["seed=3"], seed=3)
    assert json.loads(json.dumps(found)) == found
    assert (found["overrides"], found["seed"]) == (["seed=3"], 3)
    assert {"torch", "lightning", "hydra-core"} <= found["packages"].keys()
    assert all(found["packages"].values())
    assert found["cpu"]


def test_the_commit_is_that_of_the_checkout():
    git = ["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True)
    if commit.returncode:
        pytest.skip("this directory is not a git checkout")
    assert provenance.collect_provenance([], seed=0)["git"]["commit"] == commit.stdout.strip()


def test_long_changes_are_cut_and_this_is_logged(monkeypatch: pytest.MonkeyPatch, caplog):
    answers = {"rev-parse": "abc\n", "ls-files": "x\n" * 201, "diff": "d" * 100_001}
    monkeypatch.setattr(provenance, "_git", lambda name, *arguments: answers[name])
    with caplog.at_level("WARNING"):
        found = provenance.collect_provenance([], seed=0)["git"]
    assert found["diff"] == "d" * 100_000 + "\n... cut here: 100,001 characters in total\n"
    assert found["untracked"][199:] == ["x", "... and 1 more"]
    assert "only the first part of your uncommitted changes" in caplog.text


def test_outside_a_git_checkout_nothing_is_recorded_of_git(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "PROJECT_ROOT", tmp_path)
    assert provenance.collect_provenance([], seed=0)["git"] == {}
