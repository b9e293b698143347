"""The page of a sweep: what it says and draws."""

import json
import re
from pathlib import Path

import pytest
from run_folders import make_sweep

from imago.analysis.charts import parallel_chart
from imago.analysis.ranking import rank_settings
from imago.analysis.sweep_page import write_sweep_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_sweep(tmp_path_factory.mktemp("sweep") / "x")
    write_sweep_page(rank_settings(folder), folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_ranking_the_final_test_and_the_failure_are_named(page: str):
    first = re.search(r'<tr><th scope="row">1</th>\s*(.*?)</tr>', page, re.DOTALL)[1]
    assert re.findall(r"<td>([^<]*)</td>", first)[:4] == ["0.5700", "sgd", "0.128", "0.7"]
    assert "test of the best setting, chosen by val/acc: 70.00 %, 95 % interval 60.00 to 80.00, 100 images" in page
    assert "failed: the loss is nan" in page


def test_progress_curves_and_importance_are_drawn(page: str):
    assert "val/acc in the order of the trials" in page
    assert "val/acc of the best 5" in page
    assert re.search(r'<th scope="row">optimizer.lr</th>\s*<td class="bar">', page)


def test_a_sweep_in_which_nothing_finished_has_a_page(tmp_path: Path):
    folder = make_sweep(tmp_path / "x", num_settings=1)
    assert (ranking := rank_settings(folder)).best is None
    write_sweep_page(ranking, folder / "report.html")
    assert "No setting has finished." in (folder / "report.html").read_text()


def test_the_test_of_an_earlier_best_setting_is_not_that_of_the_best(page: str, tmp_path: Path):
    assert "test accuracy of the best" in page
    folder = make_sweep(tmp_path / "x")
    sweep = json.loads((folder / "sweep.json").read_text())
    sweep["test"]["runs"] = ["6"]
    (folder / "sweep.json").write_text(json.dumps(sweep))
    write_sweep_page(rank_settings(folder), folder / "report.html")
    assert "test accuracy of the best" not in (folder / "report.html").read_text()


def test_a_setting_that_no_ranked_setting_has_is_no_axis(tmp_path: Path):
    folder = make_sweep(tmp_path / "x", num_settings=6)
    for number in range(1, 6, 2):  # those with a momentum
        file = folder / str(number) / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "failed"}))
    write_sweep_page(rank_settings(folder), folder / "report.html")
    (chart,) = re.findall(
        r"all ranked settings, the best one highlighted: (.*?)\"", (folder / "report.html").read_text()
    )
    assert "optimizer.lr" in chart
    assert "momentum" not in chart


def test_parallel_axes_are_logarithmic_for_several_magnitudes_and_alphabetical_for_words():
    chart = parallel_chart("x", {"lr": ["0.1", "0.01", "0.001"], "name": ["b", "a", None], "n": ["1", "2", "3"]})
    paths = re.findall(r'd="(M[^"V]+)"', chart.svg)
    heights = [[float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)] for path in paths]
    middle, top = heights[1][0], heights[-1][0]  # drawn from the last row to the first
    assert middle == pytest.approx((heights[0][0] + top) / 2)  # 0.01 is half way between 0.001 and 0.1
    assert [len(path) for path in heights] == [2, 3, 3]
    assert heights[-1][1] > heights[1][1]  # "b" is below "a"


def test_one_value_and_missing_columns_do_not_fail():
    assert "circle" not in parallel_chart("x", {"a": ["1", "1"], "b": [None, "x"]}).svg
