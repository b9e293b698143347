"""The table of runs: folding, sorting, layout in a narrow terminal, and the CSV."""

import csv
from pathlib import Path

import pytest
from run_folders import make_run

from imago.analysis.table import RunTable, duration_text, make_table, table_text, write_csv
from imago.errors import ConfigError, DataError
from imago.runs.records import Record, read_records


def record(run: str, lr: float = 0.1, seed: int = 1, test: float | None = 0.5, **values) -> Record:
    settings = {"data": "Shapes", "model": "SimpleCNN", "seed": seed, "optimizer.lr": lr} | values.pop("settings", {})
    known = {"status": "finished", "started": f"2026-03-01T10:00:{len(run):02}", "val_acc": test, "test_acc": test}
    return Record(run=run, folder=f"/logs/{run}", settings=settings, **(known | values))


def column(table: RunTable, name: str) -> list:
    return [row.get(name) for row in table.rows]


def test_seeds_of_equal_settings_become_their_mean_and_spread():
    table = make_table([record("a", seed=1, test=0.5), record("bb", seed=2, test=0.7), record("ccc", lr=0.2)])
    assert column(table, "run") == ["a +1", "ccc"]
    assert column(table, "num_seeds") == [2, 1]
    folded = table.rows[0]
    assert (folded["test_acc"], folded["test_std"]) == (pytest.approx(0.6), pytest.approx(0.1414, abs=1e-4))
    text = table_text(table, None)
    assert "60.00 ± 14.14 % [50.00..70.00]" in text
    assert "2 seeds" in text


def test_every_seed_is_a_row_where_folding_is_off():
    table = make_table([record("a", seed=1), record("bb", seed=2)], fold=False)
    assert column(table, "run") == ["a", "bb"]
    assert column(table, "seed") == [1, 2]


def test_runs_that_did_not_finish_are_single_rows_with_a_note():
    failed = record("bb", seed=2, status="failed", reason="the loss is nan", test=None)
    table = make_table([record("a"), failed, record("ccc", seed=3, status="died", test=None)])
    assert column(table, "status") == ["finished", "failed", "died"]
    assert table.notes == ["bb failed: the loss is nan"]


def test_the_same_seed_twice_counts_once_and_the_older_run_is_named():
    table = make_table([record("a", test=0.1), record("bb", test=0.9)])
    assert column(table, "test_acc") == [0.9]
    assert table.notes[0].endswith("left out of the means, as a newer run has the same settings and seed: a")


def test_only_settings_that_differ_among_runs_of_one_kind_are_listed():
    other = record("ccc", settings={"data": "CIFAR10", "augment.cutout_px": 8, "seed": 5})
    table = make_table([record("a", lr=0.1), record("bb", lr=0.2), other])
    assert table.setting_names == ["optimizer.lr"]
    assert column(table, "typed") == ["optimizer.lr=0.1", "optimizer.lr=0.2", ""]


def test_damaged_directories_are_rows_and_notes(tmp_path: Path):
    make_run(tmp_path / "good")
    (make_run(tmp_path / "bad") / "summary.json").write_text("{")
    table = make_table(read_records(tmp_path))
    assert dict(zip(column(table, "run"), column(table, "status"), strict=True)) == {
        "good": "finished",
        "bad": "unreadable",
    }
    assert table.notes[0].startswith(f"{tmp_path / 'bad' / 'summary.json'} cannot be read: ")


def test_a_run_without_settings_is_a_row_and_a_note(tmp_path: Path):
    (make_run(tmp_path / "bad") / "config.yaml").write_text("a:\n- [")
    table = make_table(read_records(tmp_path))
    assert column(table, "test_acc") == [0.6]
    (note,) = table.notes
    assert note.startswith(f"settings of bad are not known: {tmp_path / 'bad' / 'config.yaml'} cannot be read: ")
    assert "\n" not in note


@pytest.mark.parametrize("name", ["test.acc", "test/acc", "test_acc"])
def test_accuracies_are_sorted_best_first_and_runs_without_one_come_last(name: str):
    runs = [record("a", 0.1, test=0.5), record("bb", 0.2, test=None), record("ccc", 0.3, test=0.7)]
    assert column(make_table(runs, sort=name), "run") == ["ccc", "a", "bb"]


def test_settings_are_sorted_upwards_as_numbers():
    runs = [record("a", lr=10.0), record("bb", lr=9.0), record("ccc", lr=1e-5)]
    assert column(make_table(runs, sort="optimizer.lr"), "optimizer.lr") == [1e-5, 9.0, 10.0]


def test_an_unknown_column_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"sort=acc is not a column; sort by one of run, .*optimizer.lr.*test_acc"):
        make_table([record("a", lr=0.1), record("bb", lr=0.2)], sort="acc")


def test_in_a_narrow_terminal_every_line_fits_and_no_setting_is_lost():
    runs = [record("train/2026-01-01_10-00-00", lr=0.1), record("bb", lr=0.2)]
    lines = table_text(make_table(runs), width=60).splitlines()
    assert max(map(len, lines[:-1])) <= 60
    assert [line.strip() for line in lines if line.startswith("    ")] == ["optimizer.lr=0.2", "optimizer.lr=0.1"]
    assert "too narrow for" in lines[-1]


def test_control_characters_in_names_are_escaped():
    assert "\x1b" not in table_text(make_table([record("a\x1b[2J")]), None)
    (note,) = make_table([record("a", status="failed", reason="no\x1b[2J\nroom")]).notes
    assert note == r"a failed: no\x1b[2J room"


def test_wide_signs_take_two_columns():
    lines = table_text(make_table([record("数据", lr=0.1), record("abcd", lr=0.2)]), None).splitlines()
    assert sorted(line.index("finished") for line in lines[2:]) == [4, 6]


def test_the_csv_has_plain_numbers_and_a_column_for_each_setting(tmp_path: Path):
    runs = [record("a", lr=0.1, test_low=0.4, test_high=0.6, seconds=12.5), record("bb", lr=0.2, test=None)]
    write_csv(make_table(runs), tmp_path / "new" / "runs.csv")
    with (tmp_path / "new" / "runs.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["optimizer.lr"], first["test_acc"], first["test_low"], first["seconds"]) == (
        "0.1",
        "0.5",
        "0.4",
        "12.5",
    )
    assert (second["optimizer.lr"], second["test_acc"]) == ("0.2", "")


def test_a_csv_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, Path(".")):
        with pytest.raises(DataError, match=f"csv={path} cannot be written"):
            write_csv(make_table([record("a")]), path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.55, "0.6 s"), (42, "42 s"), (59.9, "1 min 0 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")],
)
def test_durations_have_units(seconds: float | None, text: str):
    assert duration_text(seconds) == text
