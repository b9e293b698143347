"""`metrics.csv`: one row per step, written at once, and continued by a resumed run."""

import csv
import math

import pytest

from imago.logger.metrics_csv import MetricsCsv


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.csv"


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_step_has_one_row_with_all_of_its_values(path):
    log = MetricsCsv(str(path))
    for step in (1, 2, 3):
        log.log_metrics({"loss": 1 / step}, step=step)
        log.save()  # Lightning saves after every call
        log.log_metrics({"acc": 0.25}, step=step)
    log.log_metrics({"val/acc": 0.75}, step=4)  # a new column
    assert rows(path) == [
        {"step": "1", "loss": "1", "acc": "0.25", "val/acc": ""},
        {"step": "2", "loss": "0.5", "acc": "0.25", "val/acc": ""},
        {"step": "3", "loss": "0.3333333", "acc": "0.25", "val/acc": ""},
        {"step": "4", "loss": "", "acc": "", "val/acc": "0.75"},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_continues_the_file(path):
    first = MetricsCsv(str(path))
    for step in (1, 2):
        first.log_metrics({"loss": 0.5, "lr": 0.1}, step=step)
    resumed = MetricsCsv(str(path))
    resumed.log_metrics({"loss": 0.25, "acc": 0.75}, step=3)
    assert rows(path) == [
        {"step": "1", "loss": "0.5", "lr": "0.1", "acc": ""},
        {"step": "2", "loss": "0.5", "lr": "0.1", "acc": ""},
        {"step": "3", "loss": "0.25", "lr": "", "acc": "0.75"},
    ]


def test_steps_that_a_resumed_run_trains_again_are_replaced(path):
    first = MetricsCsv(str(path))
    for step in (1, 2, 3):
        first.log_metrics({"loss": 0.5}, step=step)
    resumed = MetricsCsv(str(path))
    resumed.log_metrics({"loss": 0.25}, step=2)
    assert [(row["step"], row["loss"]) for row in rows(path)] == [("1", "0.5"), ("2", "0.25")]


def test_a_run_that_logs_nothing_keeps_an_earlier_file(path):
    MetricsCsv(str(path)).log_metrics({"loss": 0.5}, step=1)
    before = path.read_bytes()
    log = MetricsCsv(str(path))
    log.save()
    log.finalize("success")
    assert path.read_bytes() == before


@pytest.mark.parametrize("left", ["step,loss\r\n1,0.5\r\n2,0.", "step,loss\r\n1,0.5\r\n2"])
def test_a_last_line_that_a_kill_cut_short_does_not_swallow_the_next(path, left: str):
    path.parent.mkdir()
    path.write_text(left, newline="")
    MetricsCsv(str(path)).log_metrics({"loss": 0.25}, step=3)
    found = rows(path)
    assert found[0] == {"step": "1", "loss": "0.5"}
    assert found[-1] == {"step": "3", "loss": "0.25"}
    assert [row["step"] for row in found] == ["1", "2", "3"]


@pytest.mark.parametrize("left", ["", "step,loss\r\n"])
def test_a_file_without_rows_is_replaced(path, left: str):
    path.parent.mkdir()
    path.write_text(left)
    MetricsCsv(str(path)).log_metrics({"loss": 0.25}, step=0)
    assert rows(path) == [{"step": "0", "loss": "0.25"}]


def test_nan_and_infinity_can_be_read_again(path):
    MetricsCsv(str(path)).log_metrics({"loss": math.nan, "grad": math.inf}, step=0)
    assert rows(path) == [{"step": "0", "loss": "nan", "grad": "inf"}]
