"""docs/results.md and the README show the headers of the experiments, and every header is complete."""

import importlib.util
import re
from pathlib import Path

import pytest

from imago.paths import PROJECT_ROOT

spec = importlib.util.spec_from_file_location("results", PROJECT_ROOT / "docs" / "results.py")
assert spec is not None
assert spec.loader is not None
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)

MEASURED = """# @package _global_
# A small network
# on drawn shapes.
#
# source:        a paper
# command:       python src/train.py experiment=mine
# hardware:      2 cores
# core-minutes:  0.5
# accuracy:      mean 90.00 %, 89.00 to 91.00 %,
#                over n = 3 seeds
# commit:        abc1234, 2026-11-20
trainer: {max_epochs: 1}   # source: not a header
"""


def experiment(folder: Path, text: str):
    (folder / "mine.yaml").write_text(text)
    return results.read_experiment(folder / "mine.yaml")


def test_every_header_is_complete():
    experiments = results.read_all()
    assert len(experiments) >= 8
    assert [problem for one in experiments for problem in one.problems()] == []
    assert all(one.title.endswith(".") for one in experiments)


def test_the_readme_shows_the_first_rows():
    readme = (PROJECT_ROOT / "README.md").read_text()
    rows = results.readme_rows(results.read_all())
    assert len(rows) > 2
    assert [row for row in rows if row not in readme] == []


def test_the_header_in_the_guide_is_complete(tmp_path: Path):
    (shown,) = re.findall(
        r"# configs/experiment/\S+\n(.*?)```", (PROJECT_ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    mine = experiment(tmp_path, shown)
    assert mine.problems() == []
    assert mine.title.endswith(".")


def test_the_page_is_up_to_date():
    assert results.PAGE.read_text() == results.render(results.read_all()), "run: make results"


def test_a_header_is_read_with_its_continued_lines(tmp_path: Path):
    mine = experiment(tmp_path, MEASURED)
    assert mine.title == "A small network on drawn shapes."
    assert mine.fields["accuracy"] == "mean 90.00 %, 89.00 to 91.00 %, over n = 3 seeds"
    assert mine.fields["source"] == "a paper"
    assert mine.is_measured
    assert mine.problems() == []


@pytest.mark.parametrize("field", ["source", "command", "hardware", "core-minutes", "commit"])
def test_a_missing_field_is_named(tmp_path: Path, field: str):
    text = "".join(line for line in MEASURED.splitlines(keepends=True) if not line.startswith(f"# {field}:"))
    assert experiment(tmp_path, text).problems() == [f"mine: the header has no `{field}:`"]


@pytest.mark.parametrize("accuracy", ["90 %", "mean 90.00 %", "val/acc 0.99 over n = 3 seeds", ""])
def test_an_accuracy_without_spread_and_number_of_seeds_is_named(tmp_path: Path, accuracy: str):
    text = MEASURED.replace("mean 90.00 %, 89.00 to 91.00 %,\n#                over n = 3 seeds", accuracy)
    (problem,) = experiment(tmp_path, text).problems()
    assert "accuracy:`" in problem


def test_an_experiment_that_was_not_run_must_have_no_measurements(tmp_path: Path):
    text = "# Planned.\n#\n# source: a paper\n# command: python src/train.py\n# accuracy: not run\n"
    assert experiment(tmp_path, text).problems() == []
    assert experiment(tmp_path, text + "# commit: abc\n").problems() == ["mine: `commit:` of a run that was not run"]


def test_a_measured_row_has_all_fields(tmp_path: Path):
    mine = experiment(tmp_path, MEASURED)
    assert results.measured_rows([mine])[2:] == [
        "| `mine` | mean 90.00 %, 89.00 to 91.00 %, over n = 3 seeds | 0.5 | 2 cores | abc1234, 2026-11-20 |"
    ]
