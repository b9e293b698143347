"""`report.py`: tables, pages, and settings that are refused."""

import csv
import json
from pathlib import Path

import pytest
from omegaconf import DictConfig
from run_folders import make_evaluation, make_run

from imago.analysis.report import report
from imago.errors import ConfigError, DataError


@pytest.fixture
def settings(compose):
    def run(**changes) -> DictConfig:
        cfg = compose(config_name="report")
        for name, value in changes.items():
            cfg[name] = str(value) if isinstance(value, Path) else value
        return cfg

    return run


def test_runs_become_a_table_in_the_terminal_and_a_csv(settings, tmp_path: Path, capsys):
    for seed in (1, 2):
        make_run(tmp_path / "logs" / "train" / f"s{seed}", seed)
    make_run(tmp_path / "logs" / "sweeps" / "lr" / "0", lr=0.2, status="failed", reason="the loss is nan", test=None)
    report(settings(runs=tmp_path / "logs", csv=tmp_path / "runs.csv"))
    shown = capsys.readouterr().out
    assert "train/s1 +1" in shown
    assert "note: sweeps/lr/0 failed: the loss is nan" in shown
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert [row["num_seeds"] for row in csv.DictReader(file)] == ["2", "1"]


def test_seeds_on_other_data_are_two_rows_with_a_note(settings, tmp_path: Path, capsys):
    for seed in (1, 2):
        (make_run(tmp_path / f"s{seed}", seed) / "provenance.json").write_text(f'{{"data": "{seed}"}}')
    report(settings(runs=tmp_path))
    shown = capsys.readouterr().out
    assert "note: averaged only where the data is the same: it changed between s1, s2" in shown
    assert "2 seeds" not in shown


def test_a_run_without_a_test_is_not_said_to_be_on_other_data(settings, tmp_path: Path, capsys):
    for seed, digests in ((1, {"test": "t"}), (2, {"test": "t"}), (3, {})):
        (make_run(tmp_path / f"s{seed}", seed) / "provenance.json").write_text(json.dumps({"data": "d"} | digests))
    report(settings(runs=tmp_path))
    assert "averaged only where" not in capsys.readouterr().out
    (tmp_path / "s2" / "provenance.json").write_text('{"data": "d", "test": "other"}')
    report(settings(runs=tmp_path))
    assert "it changed between s1, s2" in capsys.readouterr().out


def test_control_characters_of_a_run_directory_do_not_reach_the_screen(settings, tmp_path: Path, capsys):
    a = make_run(tmp_path / "logs\x1b[2J" / "a\r")
    for changes in ({"run": a}, {"runs": a.parent}, {"a": a, "b": a}, {"runs": a.parent, "csv": a / "x.csv"}):
        report(settings(**changes))
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_a_run_becomes_a_page_in_its_directory_and_two_runs_a_comparison(settings, tmp_path: Path, capsys):
    a, b = make_run(tmp_path / "train" / "a"), make_run(tmp_path / "train" / "b", lr=0.2)
    report(settings(run=a))
    assert (a / "report.html").stat().st_size > 5000
    assert "page written to" in capsys.readouterr().out
    report(settings(a=a, b=b, output=tmp_path / "page.html"))
    assert "optimizer.lr: 0.1 -> 0.2" in capsys.readouterr().out
    assert (tmp_path / "page.html").exists()
    report(settings(a=a, b=b))
    assert (a / "comparison_with_train_b.html").exists()


def test_pages_of_val_do_not_replace_those_of_test(settings, tmp_path: Path, capsys):
    a, b = make_run(tmp_path / "train" / "a"), make_run(tmp_path / "train" / "b", lr=0.2)
    for run in (a, b):
        make_evaluation(run, [0] * 40, [0] * 40 if run == a else [1] * 40, split="val")
    for split in ("test", "val"):
        report(settings(run=a, split=split))
        report(settings(a=a, b=b, split=split))
    shown = capsys.readouterr().out
    assert "on the same 40 images of val" in shown
    assert "(of val, to find a difference" in shown
    names = {file.name: file.read_text() for file in a.glob("*.html")}
    parts = ("report", "comparison_with_train_b")
    assert set(names) == {f"{part}{split}.html" for part in parts for split in ("", "_val")}
    assert "of val, to find" in names["comparison_with_train_b_val.html"]
    assert "val: 100.00 % of 40 images correct" in " ".join(names["report_val.html"].split())
    assert "of 40 images correct" not in names["report.html"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "x", "runs": "y"}, "runs= and run= select different reports"),
        ({"a": "x"}, "a= and b= are the two runs of a comparison; use both"),
        ({"split": "val"}, "split=val is a setting of a page"),
        ({"output": "x.html"}, "output=x.html is a setting of a page"),
        ({"run": "x", "sort": "run"}, "sort=run is a setting of the table of runs"),
        ({"a": "x", "b": "y", "csv": "c"}, "csv=c is a setting of the table of runs"),
        ({"run": "x", "split": "train"}, "split=train is not one of test, val"),
        ({"run": "x", "push": "a/b", "license": "mit"}, r"license=mit is a setting of a model card \(card=true\)"),
        ({"run": "x", "push": "a/b", "overwrite": True}, "overwrite=True is a setting of a model card"),
        ({"run": "x", "card": True, "private": False}, r"private=False is a setting of an upload \(push=\)"),
        ({"run": "nowhere"}, "run=nowhere is not a run directory"),
        ({"a": "nowhere", "b": "y"}, "a=nowhere is not a run directory"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes: dict, words: str, settings):
    with pytest.raises(ConfigError, match=words):
        report(settings(**changes))


def test_tags_select_runs_and_unknown_ones_are_answered_with_those_that_exist(settings, tmp_path: Path, capsys):
    for name, tags in (("a", ["x", "y"]), ("b", ["y"]), ("c", [])):
        make_run(tmp_path / name, tags=tags)
    report(settings(runs=tmp_path, tags=["y"], sort="run", group_seeds=False))
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["a", "b"]
    assert "2 runs below" in out
    with pytest.raises(ConfigError, match=r"tags=.*z.*: no run below .* has all of them; the runs have x, y\."):
        report(settings(runs=tmp_path, tags=["z"]))
    with pytest.raises(ConfigError, match="tags=.* is a setting of the table of runs"):
        report(settings(run=tmp_path / "a", tags=["y"]))


def test_a_directory_without_runs_is_named(settings, tmp_path: Path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text('{"objective": "val/acc", "direction": "maximize"}')
    with pytest.raises(DataError, match=r"sweep has no runs yet"):
        report(settings(run=tmp_path / "sweep"))
    with pytest.raises(ConfigError, match=r"split=val is a setting of a page \(run=RUN, or a= and b=\); leave it out"):
        report(settings(run=tmp_path / "sweep", split="val"))
    with pytest.raises(DataError, match=r"runs=.* contains no runs .*python src/train.py creates one"):
        report(settings(runs=tmp_path))


@pytest.mark.slow
def test_the_command_reads_a_real_run(finished_run: Path, command):
    done = command("src/report.py", f"runs={finished_run.parents[1]}", "sort=test.acc")
    assert done.returncode == 0, done.stderr
    assert "train/short" in done.stdout
    done = command("src/report.py", f"run={finished_run}", f"output={finished_run.parents[1]}/a b.html")
    assert done.returncode == 0, done.stderr
    assert "python src/eval.py run=" in done.stdout
    assert (finished_run.parents[1] / "a b.html").exists()


@pytest.mark.parametrize("name", ["config.yaml", "figures"])
def test_what_a_run_links_to_is_in_no_page_and_no_table(settings, tmp_path: Path, capsys, name: str):
    run, private = make_run(tmp_path / "train" / "a"), tmp_path / "private"
    private.write_text("password: hunter2")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(private)
    for changes in ({"run": run}, {"a": run, "b": run}):
        with pytest.raises(DataError, match=f"/a/{name} is a link"):
            report(settings(**changes))
    report(settings(runs=tmp_path, csv=tmp_path / "runs.csv"))
    assert "hunter2" not in capsys.readouterr().out + (tmp_path / "runs.csv").read_text()
    assert not (run / "report.html").exists()
