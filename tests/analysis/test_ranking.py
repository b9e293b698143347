"""The ranking of a sweep, from its run directories."""

import csv
import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from imago.analysis.ranking import final_test_lines, rank_settings, ranking_text, write_ranking
from imago.errors import DataError


@pytest.fixture
def sweep(tmp_path: Path):
    """Write the run directories of a sweep: overrides, status and objective of each run."""

    def write(*runs: tuple[str, str, float | None], **entries) -> Path:
        content = {"objective": "val/acc", "direction": "maximize", "is_monitored": True, "keys": ["lr"]} | entries
        (tmp_path / "sweep.json").write_text(json.dumps(content))
        for index, (overrides, status, value) in enumerate(runs):
            run = tmp_path / str(index)
            run.mkdir()
            (run / "trial.json").write_text(json.dumps({"overrides": ["model=x", "test=false", *overrides.split()]}))
            if status != "refused":
                summary = {"status": status, "best_value": value, "val": {"acc": value, "loss": 1 - (value or 0)}}
                summary |= {"epochs": 2, "seconds": 10.0, "reason": None if status == "finished" else f"{status} it"}
                (run / "summary.json").write_text(json.dumps(summary))
        return tmp_path

    return write


def test_settings_are_ranked_by_the_mean_over_seeds_and_folds(sweep):
    values = [0.5, 0.6, 0.9, 0.1, 0.7, 0.7]
    names = [f"lr={lr} seed={seed}" for lr in (1, 2, 3) for seed in (1, 2)]
    ranking = rank_settings(sweep(*((name, "finished", value) for name, value in zip(names, values, strict=True))))
    assert ranking.keys == ["lr"]
    expected = sorted(
        ((mean(values[i : i + 2]), str(1 + i // 2), stdev(values[i : i + 2])) for i in (0, 2, 4)), reverse=True
    )
    assert [(s.mean, s.settings["lr"], s.std) for s in ranking.settings] == [pytest.approx(row) for row in expected]
    assert ranking.best.runs == ["4", "5"]


def test_a_loss_is_ranked_ascending_and_may_differ_from_what_was_monitored(sweep):
    runs = ("lr=1", "finished", 0.9), ("lr=2", "finished", 0.2)
    ranking = rank_settings(sweep(*runs, objective="val/loss", direction="minimize", is_monitored=False))
    assert [(s.settings["lr"], s.mean) for s in ranking.settings] == [("1", pytest.approx(0.1)), ("2", 0.8)]


def test_runs_that_did_not_finish_have_no_rank_but_their_reason(sweep):
    ranking = rank_settings(
        sweep(("lr=1", "pruned", None), ("lr=2", "finished", 0.5), ("lr=3", "failed", None), ("lr=4", "refused", None))
    )
    assert [(s.settings["lr"], s.rank, s.status, s.reason) for s in ranking.settings] == [
        ("2", 1, "finished", ""), ("1", None, "pruned", "pruned it"), ("3", None, "failed", "failed it"),
        ("4", None, "failed", ""),
    ]  # fmt: skip
    assert "refused" not in ranking_text(ranking)


def test_a_setting_with_a_seed_that_failed_has_no_rank(sweep):
    ranking = rank_settings(
        sweep(("lr=1 seed=1", "finished", 0.9), ("lr=1 seed=2", "failed", None), ("lr=2", "finished", 0.1))
    )
    assert [(s.settings["lr"], s.rank) for s in ranking.settings] == [("2", 1), ("1", None)]


def test_the_files_have_every_setting_and_the_final_test(sweep):
    directory = sweep(
        ("lr=1 x=|", "finished", 0.5), ("lr=2 x=b", "finished", 0.6),
        keys=["lr", "x"],
        test={"runs": ["1"], "acc": [0.55], "interval_95": [0.5, 0.6], "num_images": 1000},
    )  # fmt: skip
    write_ranking(rank_settings(directory))
    with (directory / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["lr"], row["x"], row["val/acc"], row["runs"]) for row in rows] == [
        ("1", "2", "b", "0.600000", "1"), ("2", "1", "|", "0.500000", "0"),
    ]  # fmt: skip
    text = (directory / "ranking.md").read_text()
    assert "| 2 | 0.5000 | 1 | \\| |" in text
    assert "test of the best setting, chosen by val/acc: 55.00 %, 95 % interval 50.00 to 60.00, 1,000 images" in text


def test_the_test_of_several_seeds_has_a_mean_and_a_spread(sweep):
    test = {"runs": ["0", "1"], "acc": [0.5, 0.6], "interval_95": [0, 1], "num_images": 10}
    ranking = rank_settings(sweep(("lr=1 seed=0", "finished", 0.5), ("lr=1 seed=1", "finished", 0.5), test=test))
    assert final_test_lines(ranking) == [
        f"test of the best setting, chosen by val/acc: 55.00 % ± {100 * stdev([0.5, 0.6]):.2f} over 2 runs, 10 images"
    ]


def test_pruning_saves_what_the_others_took_longer(sweep):
    directory = sweep(("lr=1", "finished", 0.5), ("lr=2", "pruned", None))
    summary = json.loads((directory / "1/summary.json").read_text()) | {"seconds": 4.0}
    (directory / "1/summary.json").write_text(json.dumps(summary))
    assert rank_settings(directory).saved_s == pytest.approx(6.0)


def test_a_directory_without_a_sweep_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"is not the directory of a sweep: it has no readable sweep.json"):
        rank_settings(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"num_runs": None}, {"num_runs": "2"}, {"keys": 3}, {"test": [1]}, {"test": {"runs": ["0"]}},
        {"test": {"runs": ["0"], "acc": [], "interval_95": [0, 1], "num_images": 9}},
        {"test": {"runs": ["0"], "acc": ["x"], "interval_95": [0, 1], "num_images": 9}},
    ],
)  # fmt: skip
def test_a_damaged_description_is_refused(sweep, change: dict):
    folder = sweep(("lr=1 seed=1", "finished", 0.9))
    file = folder / "sweep.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=r"has no readable sweep.json"):
        rank_settings(folder)


def test_a_setting_with_seeds_that_have_not_run_has_no_rank(sweep):
    folder = sweep(("lr=1 seed=1", "finished", 0.9), ("lr=2 seed=1", "finished", 0.5), ("lr=2 seed=2", "finished", 0.6),
                   num_runs=2)  # fmt: skip
    found = {setting.settings["lr"]: setting for setting in rank_settings(folder).settings}
    assert (found["2"].rank, found["1"].rank) == (1, None)
    assert (found["1"].status, found["1"].reason) == ("stopped", "1 of 2 runs")


def test_the_worst_status_of_the_runs_of_a_setting_counts(sweep):
    folder = sweep(("lr=1 seed=1", "finished", 0.9), ("lr=1 seed=2", "failed", None), ("lr=1 seed=3", "stopped", None))
    setting = rank_settings(folder).settings[0]
    assert (setting.status, setting.reason) == ("failed", "failed it")
    assert "1 of 3" in ranking_text(rank_settings(folder))


def test_the_test_of_an_earlier_best_setting_is_not_shown(sweep):
    test = {"runs": ["0"], "acc": [0.5], "interval_95": [0.4, 0.6], "num_images": 100}
    folder = sweep(("lr=1", "finished", 0.8), ("lr=2", "finished", 0.9), test=test)
    assert final_test_lines(rank_settings(folder)) == []
