"""The lines that benchmarks/experiment.py prints are a complete header for docs/results.py."""

import argparse


def test_the_printed_lines_are_a_complete_header(script, tmp_path):
    experiment, results = script("experiment"), script("results")
    args = argparse.Namespace(seeds=[0, 1], override=["data.root=/home/me/flowers", "trainer.max_epochs=2"])
    figures = {"mean": 0.91, "lowest": 0.905, "highest": 0.915, "core_minutes": 17.0}
    lines = ["# @package _global_", "# A title.", "#", "# source:        a paper"]
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join([*lines, *experiment.header_lines("mine", args, figures, 10_000)]) + "\n")
    header = results.read_experiment(file)
    assert header.problems() == []
    assert header.fields["accuracy"] == "mean 91.00 %, 90.50 to 91.50 %, over n = 2 seeds of 10,000 images"
    assert "experiment=mine data.root=DIR trainer.max_epochs=2 seed=0,1" in header.fields["command"]
