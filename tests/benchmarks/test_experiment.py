"""The lines that benchmarks/experiment.py prints are a complete header for docs/results.py."""

import argparse

import pytest

from imago.paths import PROJECT_ROOT


def test_the_printed_lines_are_a_complete_header(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.syspath_prepend(PROJECT_ROOT / "benchmarks")
    monkeypatch.syspath_prepend(PROJECT_ROOT / "docs")
    import experiment
    import results

    args = argparse.Namespace(seeds=[0, 1], override=["data.root=/home/me/flowers", "trainer.max_epochs=2"])
    figures = {"mean": 0.91, "lowest": 0.905, "highest": 0.915, "core_minutes": 17.0}
    lines = ["# @package _global_", "# A title.", "#", "# source:        a paper"]
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join([*lines, *experiment.header_lines("mine", args, figures, 10_000)]) + "\n")
    found = results.read_experiment(file)
    assert found.problems() == []
    assert found.fields["accuracy"] == "mean 91.00 %, 90.50 to 91.50 %, over n = 2 seeds of 10,000 images"
    assert "experiment=mine data.root=DIR trainer.max_epochs=2 seed=0,1" in found.fields["command"]
