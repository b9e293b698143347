"""Runs as pandas tables: columns, types, damaged directories, and means over seeds."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from run_folders import make_run

from imago.analysis.runs import load_runs, mean_over_seeds, setting_names
from imago.errors import DataError


def test_every_run_below_the_directory_is_a_row_with_its_results(tmp_path: Path):
    make_run(tmp_path / "train" / "a")
    make_run(tmp_path / "sweeps" / "s" / "0", started="2026-03-01T09:00:00+00:00")
    (tmp_path / "latest").symlink_to("train/a")
    runs = load_runs(tmp_path)
    assert runs["run"].tolist() == ["sweeps/s/0", "train/a"]
    row = runs.iloc[1]
    assert (row["data"], row["model"], row["seed"], row["status"]) == ("Shapes", "SimpleCNN", 1, "finished")
    assert (row["val_acc"], row["test_acc"], row["test_low"], row["test_high"]) == (0.7, 0.6, 0.57, 0.63)
    assert (row["num_test_images"], row["best_epoch"], row["epochs"], row["seconds"]) == (1000, 2, 3, 12.5)
    assert (row["images_per_s"], row["data_wait_share"]) == (900, 0.05)
    assert row["folder"] == str(tmp_path / "train" / "a")


def test_the_settings_that_differ_are_columns_and_their_copies_are_not(tmp_path: Path):
    make_run(tmp_path / "a", seed=1, lr=0.1)
    make_run(tmp_path / "b", seed=2, lr=0.2)
    runs = load_runs(tmp_path)
    assert setting_names(runs) == ["optimizer.lr"]
    assert runs["optimizer.lr"].tolist() == [0.1, 0.2]
    assert not [name for name in runs.columns if "." in name and name != "optimizer.lr"]


def test_settings_of_the_network_are_named_model_and_not_task_net(tmp_path: Path):
    for name, dropout in (("a", 0.0), ("b", 0.5)):
        model = {"_target_": "imago.model.simple_cnn.SimpleCNN", "dropout": dropout}
        make_run(tmp_path / name, config={"model": model, "task": {"net": model}})
    assert setting_names(load_runs(tmp_path)) == ["model.dropout"]


def test_a_class_is_shown_by_its_short_name_and_a_missing_setting_is_empty(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", config={"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}})
    runs = load_runs(tmp_path).sort_values("run")
    assert runs["optimizer"].tolist() == ["AdamW", "SGD"]
    assert runs["optimizer.momentum"].isna().tolist() == [True, False]


def test_a_network_chosen_by_name_is_shown_by_it(tmp_path: Path):
    chosen = {"_target_": "imago.model.x.TorchvisionNet", "name": "resnet18"}
    own = {"_target_": "imago.model.simple_cnn.SimpleCNN"}
    for name, model in (("a", chosen), ("b", own)):
        make_run(tmp_path / name, config={"model": model, "task": {"net": model}})
    runs = load_runs(tmp_path).sort_values("run")
    assert runs["model"].tolist() == ["resnet18", "SimpleCNN"]
    assert setting_names(runs) == ["model"]  # neither its name nor the task's copy of it


def test_lists_are_settings_too(tmp_path: Path):
    for name, mean in (("a", [0.1, 0.2]), ("b", [0.1, 0.3])):
        make_run(tmp_path / name, config={"preprocess": {"mean": mean}})
    assert mean_over_seeds(load_runs(tmp_path))["preprocess.mean"].nunique() == 2


def test_one_run_alone_has_no_settings_that_differ(tmp_path: Path):
    runs = load_runs(make_run(tmp_path / "a"))
    assert (runs["run"].tolist(), setting_names(runs)) == (["a"], [])


def test_a_run_whose_process_is_gone_has_died(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    hosts = {"dead": platform.node(), "elsewhere": "another-host", "alive": platform.node(), "ended": platform.node()}
    for name, host in hosts.items():
        status = "finished" if name == "ended" else "running"
        folder = make_run(tmp_path / name, status=status, pid=os.getpid() if name == "alive" else gone.pid)
        (folder / "provenance.json").write_text(json.dumps({"host": host}))
    found = dict(load_runs(tmp_path)[["run", "status"]].itertuples(index=False))
    assert found == {"dead": "died", "elsewhere": "running", "alive": "running", "ended": "finished"}


def test_a_running_run_has_empty_results_and_counts_stay_integers(tmp_path: Path):
    make_run(tmp_path / "a")
    folder = make_run(tmp_path / "b")
    (folder / "metrics.csv").unlink()
    (folder / "summary.json").write_text('{"status": "running", "started": "2026-03-02T10:00:00+00:00"}')
    runs = load_runs(tmp_path)
    assert runs.loc[1, ["val_acc", "test_acc", "test_low", "epochs", "best_epoch"]].isna().all()
    assert (str(runs["epochs"].dtype), str(runs["seed"].dtype)) == ("Int64", "Int64")


def test_half_an_image_in_a_damaged_summary_is_missing(tmp_path: Path):
    make_run(tmp_path / "a", test={"acc": 0.5, "interval_95": [0.4, 0.6], "num_images": 10.5})
    runs = load_runs(tmp_path)
    assert (runs["num_test_images"].isna().all(), runs.loc[0, "test_acc"]) == (True, 0.5)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"test": 3}', '{"test": {"interval_95": [1]}}', "\udcff"])
def test_a_damaged_summary_is_named_in_a_warning_and_kept(content: str, tmp_path: Path):
    make_run(tmp_path / "good")
    file = make_run(tmp_path / "bad") / "summary.json"
    file.write_text(content, errors="surrogateescape")
    with pytest.warns(UserWarning, match=str(file)):
        runs = load_runs(tmp_path)
    assert dict(runs[["run", "status"]].itertuples(index=False)) == {"good": "finished", "bad": "unreadable"}


@pytest.mark.parametrize("content", [None, "", "- 1", "{"])
def test_a_run_without_settings_does_not_make_all_settings_differ(content: str | None, tmp_path: Path):
    make_run(tmp_path / "good")
    file = make_run(tmp_path / "bare") / "config.yaml"
    file.unlink() if content is None else file.write_text(content)
    with pytest.warns(UserWarning, match=str(file)):
        runs = load_runs(tmp_path)
    assert (len(runs), [name for name in runs.columns if "." in name]) == (2, [])


def test_a_directory_without_runs_is_an_empty_table_with_all_columns(tmp_path: Path):
    runs = load_runs(tmp_path)
    assert len(runs) == 0
    assert {"run", "status", "seed", "val_acc", "data_wait_share"} <= set(runs.columns)
    assert len(mean_over_seeds(runs)) == 0


def test_a_missing_directory_is_refused_by_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"runs=.*nowhere is not a "):
        load_runs(tmp_path / "nowhere")


def test_seeds_of_equal_settings_are_averaged_and_the_best_validation_mean_is_first(tmp_path: Path):
    for seed, lr, val in [(1, 0.1, 0.5), (2, 0.1, 0.7), (3, 0.1, 0.6), (1, 0.2, 0.9)]:
        make_run(tmp_path / f"{seed}-{lr}", seed, lr, val={"acc": val}, test={"acc": val / 2})
    table = mean_over_seeds(load_runs(tmp_path))
    assert table[["optimizer.lr", "n"]].to_numpy().tolist() == [[0.2, 1], [0.1, 3]]
    assert table.loc[1, ["val_acc_mean", "val_acc_std"]].tolist() == pytest.approx([0.6, 0.1])
    assert table.loc[1, ["test_acc_mean", "test_acc_std"]].tolist() == pytest.approx([0.3, 0.05])
    assert pd.isna(table.loc[0, "val_acc_std"])
    assert table.loc[1, ["test_acc_low", "test_acc_high"]].tolist() == pytest.approx([0.1758, 0.4242], abs=1e-4)
    assert pd.isna(table.loc[0, "test_acc_low"])


def test_runs_that_did_not_finish_and_older_repetitions_do_not_count(tmp_path: Path):
    make_run(tmp_path / "old", val={"acc": 0.1})
    make_run(tmp_path / "new", val={"acc": 0.8}, started="2026-03-02T10:00:00+00:00")
    make_run(tmp_path / "failed", seed=2, status="failed", val={"acc": 0.2})
    table = mean_over_seeds(load_runs(tmp_path))
    assert table[["n", "val_acc_mean"]].to_numpy().tolist() == [[1, 0.8]]


def test_a_setting_that_some_runs_lack_still_makes_a_group(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", config={"schedule": {"warmup_epochs": 5}})
    assert len(mean_over_seeds(load_runs(tmp_path))) == 2
