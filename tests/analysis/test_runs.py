"""Runs as pandas tables: columns, types, damaged directories, and means over seeds."""

import json
import os
import platform
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from run_folders import make_run

from imago.analysis.runs import (
    load_runs,
    mean_over_seeds,
    metric_names,
    older_repetitions,
    runs_on_other_data,
    setting_names,
)
from imago.analysis.table import sort_runs
from imago.errors import DataError


def test_every_run_below_the_directory_is_a_row_with_its_results(tmp_path: Path):
    make_run(tmp_path / "train" / "a")
    make_run(tmp_path / "sweeps" / "s" / "0", started="2026-03-01T09:00:00+00:00")
    (tmp_path / "latest").symlink_to("train/a")
    runs = load_runs(tmp_path)
    assert runs["run"].tolist() == ["sweeps/s/0", "train/a"]
    results = {"val_acc": 0.7, "test_acc": 0.6, "test_low": 0.57, "test_high": 0.63, "num_test_images": 1000}
    results |= {"best_epoch": 2, "epochs": 3, "seconds": 12.5, "images_per_s": 900, "data_wait_share": 0.05}
    identity = {"data": "Shapes", "model": "SimpleCNN", "seed": 1, "status": "finished"}
    expected = identity | results | {"run_dir": str(tmp_path / "train" / "a")}
    assert runs.loc[1, list(expected)].to_dict() == expected
    assert setting_names(runs) == []
    assert load_runs(tmp_path / "train" / "a")["run"].tolist() == ["a"]


def test_the_settings_that_differ_are_columns_and_their_copies_are_not(tmp_path: Path):
    for name, lr, dropout in (("a", 0.1, 0.0), ("b", 0.2, 0.5)):
        model = {"_target_": "imago.model.simple_cnn.SimpleCNN", "dropout": dropout}
        task = {"net": model, "optimizer": {"lr": lr}}
        make_run(tmp_path / name, lr=lr, config={"model": model, "task": task, "preprocess": {"mean": [lr, 0.2]}})
    runs = load_runs(tmp_path)
    assert setting_names(runs) == ["model.dropout", "optimizer.lr", "preprocess.mean"]
    assert [name for name in runs.columns if "." in name] == setting_names(runs)
    assert runs["optimizer.lr"].tolist() == [0.1, 0.2]


def test_a_class_is_shown_by_its_short_name_or_the_name_it_builds_and_a_missing_setting_is_empty(tmp_path: Path):
    chosen = {"_target_": "imago.model.x.TorchvisionNet", "name": "resnet18"}
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
    own = {"_target_": "imago.model.simple_cnn.SimpleCNN"}
    make_run(tmp_path / "a", started="2026-02-01", config={"model": own, "task": {"net": own}})
    make_run(tmp_path / "b", config={"model": chosen, "task": {"net": chosen}, "optimizer": sgd})
    runs = load_runs(tmp_path)
    assert runs["optimizer"].tolist() == ["AdamW", "SGD"]
    assert runs["optimizer.momentum"].isna().tolist() == [True, False]
    assert runs["model"].tolist() == ["SimpleCNN", "resnet18"]
    assert not {"model.name", "task.net", "task.net.name"} & set(runs.columns)


def test_a_run_whose_process_is_gone_has_died(tmp_path: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    hosts = {"dead": platform.node(), "elsewhere": "another-host", "alive": platform.node(), "ended": platform.node()}
    for name, host in hosts.items():
        status = "finished" if name == "ended" else "running"
        directory = make_run(tmp_path / name, status=status, pid=os.getpid() if name == "alive" else gone.pid)
        (directory / "provenance.json").write_text(json.dumps({"host": host}))
    statuses = dict(load_runs(tmp_path)[["run", "status"]].itertuples(index=False))
    assert statuses == {"dead": "died", "elsewhere": "running", "alive": "running", "ended": "finished"}


def test_a_running_run_has_empty_results_and_counts_stay_integers(tmp_path: Path):
    make_run(tmp_path / "a")
    directory = make_run(tmp_path / "b")
    (directory / "metrics.csv").unlink()
    (directory / "summary.json").write_text('{"status": "running", "started": "2026-03-02T10:00:00+00:00"}')
    runs = load_runs(tmp_path)
    assert runs.loc[1, ["val_acc", "test_acc", "test_low", "epochs", "best_epoch"]].isna().all()
    assert (str(runs["epochs"].dtype), str(runs["seed"].dtype)) == ("Int64", "Int64")


def test_settings_are_numbers_and_integers_stay_integers_beside_an_empty_cell(tmp_path: Path):
    for lr in (10.0, 1e-5, 0.01):
        options = {} if lr == 0.01 else {"augment": {"cutout_px": 8}}
        make_run(tmp_path / str(lr), lr=lr, config=options)
    runs = sort_runs(load_runs(tmp_path), "optimizer.lr")
    assert runs["optimizer.lr"].tolist() == [1e-5, 0.01, 10.0]
    assert "8.0" not in runs["augment.cutout_px"].to_csv()


def test_a_seed_too_large_for_a_table_is_left_out_of_it(tmp_path: Path):
    make_run(tmp_path / "a", seed=20260101123456789012)
    assert load_runs(tmp_path)["seed"].isna().tolist() == [True]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"test": 3}', '{"test": {"interval_95": [1]}}', "\udcff"])
def test_a_damaged_summary_is_named_and_kept(content: str, tmp_path: Path):
    file = make_run(tmp_path / "bad") / "summary.json"
    file.write_text(content, errors="surrogateescape")
    (row,) = load_runs(tmp_path).to_dict("records")
    assert row["status"] == "unreadable"
    assert str(file) in row["reason"]


def test_a_run_without_settings_is_named_and_does_not_make_all_settings_differ(tmp_path: Path):
    make_run(tmp_path / "good")
    file = make_run(tmp_path / "bare") / "config.yaml"
    file.unlink()
    runs = load_runs(tmp_path)
    assert str(file) in runs.set_index("run").loc["bare", "config_error"]
    assert (setting_names(mean_over_seeds(runs)), len(mean_over_seeds(runs))) == (["data", "model"], 2)


def test_a_directory_without_runs_is_an_empty_table_with_all_columns(tmp_path: Path):
    runs = load_runs(tmp_path)
    assert len(runs) == 0
    assert {"run", "status", "seed", "val_acc", "data_wait_share"} <= set(runs.columns)
    assert len(mean_over_seeds(runs)) == 0


def test_a_missing_directory_is_refused_by_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"runs=.*nowhere is not a "):
        load_runs(tmp_path / "nowhere")


def test_seeds_of_equal_settings_become_their_mean_and_spread(tmp_path: Path):
    for seed, lr, val in [(1, 0.1, 0.5), (2, 0.1, 0.7), (3, 0.1, 0.6), (1, 0.2, 0.9)]:
        make_run(
            tmp_path / f"{seed}-{lr}", seed, lr, val={"acc": val}, test={"acc": val / 2, "interval_95": [0.4, 0.5]}
        )
    mean, single = mean_over_seeds(load_runs(tmp_path)).sort_values("optimizer.lr").to_dict("records")
    assert (mean["run"], mean["optimizer.lr"], mean["num_seeds"]) == ("1-0.1 +2", 0.1, 3)
    assert (mean["val_acc"], mean["val_std"]) == pytest.approx((0.6, 0.1))
    assert (mean["test_acc"], mean["test_std"]) == pytest.approx((0.3, 0.05))
    assert (mean["test_low"], mean["test_high"]) == pytest.approx((0.1758, 0.4242), abs=1e-4)
    assert (mean["test_lowest"], mean["test_highest"]) == (0.25, 0.35)
    assert pd.isna(mean["seed"])
    assert (single["run"], single["num_seeds"], single["test_low"]) == ("1-0.2", 1, 0.4)
    assert pd.isna(single["val_std"])


@pytest.mark.parametrize("key", ["data", "test"])
def test_seeds_on_data_that_changed_in_between_are_not_averaged(tmp_path: Path, key: str):
    accuracies = {1: 0.5, 2: 0.6, 3: 0.9}
    for seed, acc in accuracies.items():
        run = make_run(tmp_path / f"s{seed}", seed, test={"acc": acc, "num_images": 10 * seed})
        (run / "provenance.json").write_text(json.dumps({"data": "x", key: "old" if seed < 3 else "new"}))
    runs = load_runs(tmp_path)
    means = mean_over_seeds(runs).sort_values("test_acc")
    assert means["num_seeds"].tolist() == [2, 1]
    assert means["test_acc"].tolist() == pytest.approx([0.55, 0.9])
    assert runs_on_other_data(runs)["run"].tolist() == ["s1", "s2", "s3"]
    assert runs_on_other_data(runs[:2]).empty
    assert runs_on_other_data(runs[:0]).empty


def test_runs_that_did_not_finish_and_older_repetitions_do_not_count(tmp_path: Path):
    make_run(tmp_path / "old", val={"acc": 0.1})
    make_run(tmp_path / "new", val={"acc": 0.8}, started="2026-03-02T10:00:00+00:00")
    make_run(tmp_path / "failed", seed=2, status="failed", val={"acc": 0.2})
    runs = load_runs(tmp_path)
    assert older_repetitions(runs)["run"].tolist() == ["old"]
    table = mean_over_seeds(runs)[["run", "status", "num_seeds", "val_acc"]]
    assert table.to_numpy().tolist() == [["new", "finished", 1, 0.8], ["failed", "failed", 1, 0.2]]


def test_a_setting_that_some_runs_lack_still_makes_a_group(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", config={"schedule": {"warmup_epochs": 5}})
    assert len(mean_over_seeds(load_runs(tmp_path))) == 2


def test_further_metrics_are_columns_with_mean_and_spread_over_seeds(tmp_path: Path):
    for seed, f1 in ((1, 0.5), (2, 0.75)):
        make_run(tmp_path / str(seed), seed, val={"acc": f1, "f1": f1}, test={"f1": f1 / 2})
    runs = load_runs(tmp_path)
    assert metric_names(runs) == ["val/f1", "test/f1"]
    assert setting_names(runs) == []
    assert runs["test/f1"].tolist() == [0.25, 0.375]
    (mean,) = mean_over_seeds(runs).to_dict("records")
    assert (mean["num_seeds"], mean["val/f1"], mean["test/f1"]) == (2, 0.625, 0.3125)
    assert (mean["std/val/f1"], mean["std/test/f1"]) == pytest.approx((0.125 * 2**0.5, 0.0625 * 2**0.5))


def test_a_metric_that_some_runs_add_separates_no_seeds_and_another_definition_does(tmp_path: Path):
    f1, micro, auroc = {"f1": {"average": "macro"}}, {"f1": {"average": "micro"}}, {"auroc": {"_target_": "a.AUROC"}}
    make_run(tmp_path / "1", 1, test={"f1": 0.5}, config={"metrics": f1})
    make_run(tmp_path / "2", 2, test={"f1": 0.7, "auroc": 0.9}, config={"metrics": f1 | auroc})
    (mean,) = mean_over_seeds(load_runs(tmp_path)).to_dict("records")
    assert (mean["num_seeds"], mean["test/f1"], mean["test/auroc"]) == (2, pytest.approx(0.6), 0.9)
    assert pd.isna(mean["std/test/auroc"])
    make_run(tmp_path / "3", 3, test={"f1": 0.6}, config={"metrics": micro})
    assert mean_over_seeds(load_runs(tmp_path))["num_seeds"].tolist() == [2, 1]
