"""The table of runs: sorting, layout in a narrow terminal, notes, and the CSV."""

import csv
from pathlib import Path

import pytest
from pandas import DataFrame
from run_folders import make_run

from imago.analysis.runs import load_runs, mean_over_seeds
from imago.analysis.table import run_notes, sort_runs, table_text, write_runs_csv
from imago.errors import ConfigError, DataError
from imago.text import display_width


def runs_table(*rows: dict) -> DataFrame:
    """Return a table like that of `load_runs`."""
    known = {"status": "finished", "started": "2026-03-01", "data": "Shapes", "model": "SimpleCNN", "seed": 1}
    results = dict.fromkeys(("test_low", "test_high", "num_test_images", "seconds", "images_per_s", "run_dir"))
    other = results | {"best_epoch": 1, "epochs": 1, "data_wait_share": 0.1, "reason": None, "config_error": None}
    return DataFrame([known | {"val_acc": 0.5, "test_acc": 0.5} | other | row for row in rows])


def test_seeds_are_shown_with_their_spread_and_every_seed_without_means(tmp_path: Path):
    for seed, acc in ((1, 0.5), (2, 0.7)):
        make_run(tmp_path / str(seed), seed, test={"acc": acc, "interval_95": [acc - 0.1, acc + 0.1], "f1": acc})
    runs = load_runs(tmp_path)
    means = table_text(mean_over_seeds(runs), None)
    assert "60.00 ± 14.14 % [50.00..70.00]" in means
    assert "2 seeds" in means
    assert "0.6000 ± 0.14" in means
    assert "50.00 % (40.00..60.00)" in table_text(runs, None)


def test_only_settings_that_differ_among_runs_of_one_kind_are_listed():
    lrs = [{"run": name, "optimizer.lr": lr} for name, lr in (("a", 0.1), ("b", 10.0))]
    other = {"run": "c", "data": "CIFAR10", "optimizer.lr": 0.1, "augment.cutout_px": 8, "seed": 5}
    first, second, third = table_text(runs_table(*lrs, other), None).splitlines()[2:]
    assert first.endswith(" optimizer.lr=0.1")
    assert second.endswith(" optimizer.lr=10.0")
    assert "=" not in third


def test_typed_settings_are_shown_and_others_only_where_nothing_was_typed():
    rows = [
        {"run": "a", "typed": {"optimizer.lr": "0.1", "trainer.max_epochs": "5", "experiment": "fast"}},
        {"run": "b", "optimizer.lr": 0.2, "augment.cutout_px": 8, "typed": {"augment": "heavy", "seed": "3"}},
    ]
    runs = runs_table(*({"optimizer.lr": 0.1, "augment.cutout_px": 0} | row for row in rows))
    first, second = table_text(runs, None).splitlines()[2:]
    assert first.endswith("  experiment=fast optimizer.lr=0.1")
    assert second.endswith("  augment=heavy optimizer.lr=0.2")
    for typed in ({"seed": "1"}, {}, None):
        first, second = table_text(runs.assign(typed=[typed] * 2), None).splitlines()[2:]
        assert second.endswith("  optimizer.lr=0.2 augment.cutout_px=8")


def test_long_settings_are_cut_at_the_width_of_the_terminal():
    runs = runs_table({"run": "a", "data.root": "/a" * 50}, {"run": "b", "data.root": "/数" * 50})
    for width in (40, 80):
        lines = [line for line in table_text(runs, width).splitlines() if line.startswith("    ")]
        assert all(width - 1 <= display_width(line) <= width and line.endswith("...") for line in lines)


def test_what_a_row_does_not_show_is_a_note(tmp_path: Path):
    make_run(tmp_path / "good")
    make_run(tmp_path / "bad", status="failed", reason="no\x1b[2J\nroom")
    make_run(tmp_path / "dead", status="died", reason="it was killed")
    (make_run(tmp_path / "bare") / "config.yaml").write_text("a:\n- [")
    (make_run(tmp_path / "empty") / "summary.json").write_text("{")
    empty, bad, bare = sorted(run_notes(load_runs(tmp_path)))
    assert bad == r"bad failed: no\x1b[2J room"
    assert bare.startswith(f"settings of bare are not known: {tmp_path / 'bare' / 'config.yaml'} cannot be read: ")
    assert empty.startswith(f"{tmp_path / 'empty' / 'summary.json'} cannot be read: ")
    assert "\n" not in bare


def test_tags_are_a_column_and_select_runs(tmp_path: Path):
    for name, tags in (("a", ["base", "x\x1b[2J"]), ("b", ["base"]), ("c", []), ("d", None), ("e", 5)):
        make_run(tmp_path / name, tags=tags)
    header, _, first, *_ = table_text(load_runs(tmp_path), None).splitlines()
    assert "tags" in header
    assert r"base, x\x1b[2J" in first
    assert load_runs(tmp_path, ["base"])["run"].tolist() == ["a", "b"]
    assert load_runs(tmp_path, ["base", "x\x1b[2J"])["run"].tolist() == ["a"]
    assert "tags" not in table_text(load_runs(tmp_path)[2:], None)


@pytest.mark.parametrize("name", ["test.acc", "test/acc", "test_acc"])
def test_accuracies_are_sorted_best_first_and_runs_without_one_come_last(name: str):
    runs = runs_table(*({"run": run, "test_acc": acc} for run, acc in (("a", 0.5), ("b", None), ("c", 0.7))))
    assert sort_runs(runs, name)["run"].tolist() == ["c", "a", "b"]


@pytest.mark.parametrize("values", [[1e-5, 9.0, 10.0, None], ["AdamW", "SGD", None], ["9", 10, None]])
def test_settings_are_sorted_in_ascending_order(values: list):
    runs = runs_table(*({"run": str(value), "optimizer.lr": value} for value in values[::-1]))
    order = sorted(values[:-1], key=str) if "9" in values else values[:-1]
    assert sort_runs(runs, "optimizer.lr")["run"].tolist() == [*map(str, order), "None"]


def test_an_unknown_column_is_refused_with_the_nearest_ten():
    with pytest.raises(
        ConfigError, match=r"sort=acc is not a column; sort by one of val_acc, (\w+, ){8}\w+ and \d+ more"
    ):
        sort_runs(runs_table({"run": "a"}), "acc")


def test_in_a_narrow_terminal_every_line_fits_and_no_setting_is_lost():
    runs = runs_table({"run": "train/2026-01-01_10-00-00", "optimizer.lr": 0.1}, {"run": "b", "optimizer.lr": 0.2})
    lines = table_text(runs, width=60).splitlines()
    assert max(map(len, lines[:-1])) <= 60
    assert [line.strip() for line in lines if line.startswith("    ")] == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert "too narrow for" in lines[-1]


def test_control_characters_are_escaped_and_wide_characters_take_two_columns():
    lines = table_text(runs_table({"run": "a\x1b[2J"}, {"run": "数据"}), None).splitlines()
    assert r"a\x1b[2J" in lines[2]
    assert lines[2].index("finished") == lines[3].index("finished") + 2


def test_the_csv_has_plain_numbers_and_a_column_for_each_setting(tmp_path: Path):
    runs = runs_table(
        {"run": "a", "optimizer.lr": 0.1, "test_low": 0.4}, {"run": "b", "optimizer.lr": 0.2, "test_acc": None}
    )
    write_runs_csv(runs, tmp_path / "new" / "runs.csv")
    with (tmp_path / "new" / "runs.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["optimizer.lr"], first["test_acc"], first["test_low"]) == ("0.1", "0.5", "0.4")
    assert (second["optimizer.lr"], second["test_acc"]) == ("0.2", "")


def test_a_csv_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, Path(".")):
        with pytest.raises(DataError, match=f"csv={path} cannot be written"):
            write_runs_csv(runs_table({"run": "a"}), path)


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("test/f1", "bac"),
        ("test.f1", "bac"),
        ("f1", "bac"),
        ("my_loss", "acb"),
        ("val/my_loss", "acb"),
        ("test/calibration_error", "cab"),
    ],
)
def test_further_metrics_are_sorted_best_first_and_losses_and_errors_in_ascending_order(column: str, order: str):
    values = {"a": (0.5, 0.1, 0.2), "b": (0.7, 0.3, 0.3), "c": (None, 0.2, 0.1)}
    names = ("test/f1", "val/my_loss", "test/calibration_error")
    runs = runs_table(*({"run": run} | dict(zip(names, row, strict=True)) for run, row in values.items()))
    assert "".join(sort_runs(runs, column)["run"]) == order


def test_two_metrics_in_which_the_runs_differ_are_shown_those_of_the_test_first():
    equal = {"val/f1": 0.5, "test/same": 0.1}
    first = {"run": "a", "test/loss": 1.0, "test/f1": 0.51234, "test/auroc": 0.9} | equal
    second = {"run": "b", "test/loss": 2.0, "test/f1": 0.00004} | equal
    header, _, *rows = table_text(runs_table(first, second), None).splitlines()
    assert [name for name in header.split() if "/" in name] == ["test/f1", "test/auroc"]
    assert "   0.5123      0.9000" in rows[0]
    assert rows[1].endswith(" 4e-05")
    (alone,) = table_text(runs_table(first), None).splitlines()[2:]
    assert alone.split()[-2:] == ["0.5123", "0.9000"]


def test_in_a_narrow_terminal_metrics_are_left_out_after_the_speed(tmp_path: Path):
    runs = runs_table({"run": "a", "test/f1": 0.5, "images_per_s": 9.0}, {"run": "b", "test/f1": 0.6})
    *_, note = table_text(runs, width=60).splitlines()
    assert note.startswith("(this terminal is too narrow for images/s, test/f1;")
    assert "test/f1" in table_text(runs, width=70).splitlines()[0]
