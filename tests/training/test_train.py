"""`python src/train.py`: the run directory, the terminal output, a sweep, and a loss that is not finite."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import summary
from warm_runs import TINY, WarmRuns

from imago import load_model
from imago.data import shapes

pytestmark = pytest.mark.slow


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_the_run_directory_has_config_provenance_summary_metrics_and_checkpoints(finished_run: Path):
    names = {path.name for path in finished_run.iterdir()}
    assert names == {
        *("config.yaml", "provenance.json", "summary.json", "train.log", "metrics.csv", "tensorboard"),
        *("checkpoints", "figures", ".lock"),
    }
    kept = {path.name for path in (finished_run / "checkpoints").iterdir()}
    assert kept == {"best.ckpt", "last.ckpt", "calibration.json"}
    provenance = json.loads((finished_run / "provenance.json").read_text())
    assert provenance["command"].endswith(f"paths.log_dir={finished_run.parents[1]}")
    assert {"git", "packages", "cpu", "seed", "data", "device", "precision", "overrides"} <= provenance.keys()
    assert (finished_run.parents[1] / "latest").resolve() == finished_run.resolve()


def test_the_summary_has_status_accuracies_and_speed(finished_run: Path):
    result = summary(finished_run)
    assert result["status"] == "finished"
    assert result["test"]["num_images"] == 1000
    low, high = result["test"]["interval_95"]
    assert low < result["test"]["acc"] < high
    assert result["val"]["acc"] > 0.2
    assert result["images_per_s"] > 0
    assert 0 <= result["data_wait_share"] <= 1


def test_the_terminal_shows_the_table_the_accuracy_and_the_next_commands(finished_run: Path):
    screen = (finished_run.parents[1] / "screen.txt").read_text()
    for word in ("5,000 train / 1,000 val / 1,000 test", "from the dataset", "2,122,186 parameters", "128 per"):
        assert word in screen
    assert f"test accuracy {summary(finished_run)['test']['acc']:.2%}, 95 % interval" in screen
    assert "tensorboard --logdir" in screen
    assert "http" not in screen


def test_metrics_csv_has_one_row_per_step_and_both_epochs(finished_run: Path):
    rows = list(csv.DictReader((finished_run / "metrics.csv").open()))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert [row["epoch"] for row in rows if row["val/acc"]] == ["0", "1"]
    best = max(float(row["val/acc"]) for row in rows if row["val/acc"])
    assert best == pytest.approx(summary(finished_run)["val"]["acc"], abs=1e-5)


def test_tensorboard_has_the_same_curves(finished_run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: set[str] = set()
    for file in (finished_run / "tensorboard").glob("events*"):
        tags |= set(EventAccumulator(str(file)).Reload().Tags()["scalars"])
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "test/acc", "lr", "images_per_s"} <= tags


def test_checkpoint_is_plain_data_with_clean_keys(finished_run: Path):
    checkpoint = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["class_names"] == list(shapes.CLASS_NAMES)
    assert set(checkpoint["hyper_parameters"]) == {
        *("net", "optimizer", "schedule", "loss", "class_names", "class_counts", "preprocess")
    }
    assert all(key.startswith("net.") and "_orig_mod" not in key for key in checkpoint["state_dict"])


def test_load_model_reproduces_the_accuracy_of_the_final_test(finished_run: Path):
    model = load_model(finished_run)
    images, labels = shapes.render_split("test")
    with torch.inference_mode():
        logits = torch.cat([model(torch.from_numpy(part)) for part in np.split(images, 8)])
    assert not model.training
    assert model.class_names == shapes.CLASS_NAMES
    accuracy = (logits.argmax(dim=1).numpy() == labels).mean()
    assert accuracy == pytest.approx(summary(finished_run)["test"]["acc"], abs=1e-9)


def test_a_sweep_writes_one_run_directory_per_trial(runs: WarmRuns):
    runs.run(*TINY, "-m", "run_name=seeds", "seed=1,2", "trainer.max_epochs=1")
    trials = [runs.logs / "sweeps" / "seeds" / number for number in ("0", "1")]
    assert [summary(trial)["status"] for trial in trials] == ["finished", "finished"]
    assert not torch.equal(weights(trials[0])["net.classifier.1.weight"], weights(trials[1])["net.classifier.1.weight"])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_finite_checkpoint(runs: WarmRuns):
    done = runs.run(*TINY, "run_name=nan", "+callbacks.spoiled={_target_: interruptions.Spoil, step: 4}", expect=2)
    assert "lower optimizer.lr" in done.stderr
    assert "Traceback" not in done.stderr
    run = runs.logs / "train" / "nan"
    assert summary(run)["status"] == "failed"
    for name in ("best", "last"):
        assert all(torch.isfinite(value).all() for value in weights(run, name).values()), name
