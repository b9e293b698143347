"""`python src/train.py`: the run directory, the terminal output, a sweep, and a loss that is not finite."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from short_runs import SHORT, summary
from sklearn import metrics as sk
from warm_python import warm_imago
from warm_runs import TINY, TWO, WarmRuns

from imago import load_model
from imago.analysis.evaluation import eval_command
from imago.data import shapes
from imago.onnx_classifier import OnnxClassifier

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


def test_checkpoint_is_plain_data_with_clean_keys(finished_run: Path):
    checkpoint = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["class_names"] == list(shapes.CLASS_NAMES)
    assert set(checkpoint["hyper_parameters"]) == {
        *("net", "optimizer", "schedule", "loss", "metrics", "class_names", "class_counts", "preprocess"),
        *("output_names", "predicts_classes"),
    }
    assert all(key.startswith("net.") and "_orig_mod" not in key for key in checkpoint["state_dict"])


@pytest.mark.xdist_group("sweep")
def test_a_sweep_writes_one_run_directory_per_trial(finished_sweep: Path):
    trials = [finished_sweep / number for number in ("0", "1", "2", "3")]
    assert [summary(trial)["status"] for trial in trials] == ["finished"] * 4
    assert not torch.equal(weights(trials[0])["net.classifier.1.weight"], weights(trials[1])["net.classifier.1.weight"])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_finite_checkpoint(runs: WarmRuns):
    done = runs.run(*TINY, "run_name=nan", "+callbacks.spoiled={_target_: interruptions.Spoil, step: 4}", expect=2)
    assert "lower optimizer.lr" in done.stderr
    assert "Traceback" not in done.stderr
    run = runs.logs / "train" / "nan"
    assert summary(run)["status"] == "failed"
    for name in ("best", "last"):
        assert all(torch.isfinite(value).all() for value in weights(run, name).values()), name


# Metrics and what is monitored


@pytest.fixture(scope="module")
def measured(runs: WarmRuns) -> Path:
    """A run in two processes with another metric, in fp32."""
    auroc = "+metrics.auroc._target_=torchmetrics.classification.MulticlassAUROC"
    runs.run(*SHORT, *TWO, auroc, "trainer.precision=32-true", "trainer.max_epochs=1", "run_name=measured")
    return runs.logs / "train" / "measured"


def by_scikit_learn(run: Path, split: str) -> dict[str, float]:
    """Compute the metrics of a split from the logits of best.ckpt."""
    model = load_model(run)
    images, labels = shapes.render_split(split)
    with torch.inference_mode():
        logits = torch.cat([model(torch.from_numpy(part)) for part in np.split(images, 8)])
    return {
        "acc": sk.accuracy_score(labels, logits.argmax(dim=1)),
        "f1": sk.f1_score(labels, logits.argmax(dim=1), average="macro", zero_division=0),
        "auroc": sk.roc_auc_score(labels, logits.double().softmax(dim=1), multi_class="ovr", average="macro"),
    }


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_of_two_processes_and_of_eval_are_those_of_scikit_learn(measured: Path, split: str):
    expected = by_scikit_learn(measured, split)
    found = summary(measured)[split]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-5)
    assert found["num_images"] == 1000
    done = warm_imago().run("src/eval.py", f"run={measured}", f"split={split}")
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads((measured / "eval" / split / "metrics.json").read_text())
    assert {name: again[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    for name in ("f1", "auroc"):
        low, high = again[f"{name}_interval_95"]
        assert low < again[name] < high
    assert "auroc" in done.stdout


@pytest.mark.parametrize("monitor", ["val/f1", "val/loss"])
def test_the_best_epoch_is_that_of_the_monitored_metric_also_after_a_resume(runs: WarmRuns, monitor: str):
    name = monitor.replace("/", "-")
    typed = (*TINY, "trainer.max_epochs=5", "optimizer.lr=0.03", f"callbacks.best_checkpoint.monitor={monitor}")
    saves = ("callbacks.last_checkpoint.every_minutes=0.0", f"run_name={name}", "tags=[a,b c]")
    runs.run(*typed, *saves, "+callbacks.broken={_target_: interruptions.Raise, step: 10}", expect=1)
    run = runs.logs / "train" / name
    assert summary(run)["tags"] == ["a", "b c"]
    done = runs.run(f"resume={run}", "callbacks.broken=null", *(["tags=[c]"] if monitor == "val/f1" else []))
    assert summary(run)["tags"] == (["c"] if monitor == "val/f1" else ["a", "b c"])
    assert "not calibrated: trainer.limit_val_batches=2 left images out" in done.stdout
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row["val/acc"]]
    values = [float(row[monitor]) for row in rows]
    best = values.index(max(values) if monitor == "val/f1" else min(values))
    found = summary(run)
    assert (len(rows), found["best_epoch"]) == (5, best + 1)
    assert found["val"].pop("monitor") == monitor
    expected = {name.removeprefix("val/"): float(text) for name, text in rows[best].items() if name.startswith("val/")}
    assert found["val"] == pytest.approx(expected, abs=1e-5)
    assert expected.keys() == {"loss", "acc", "f1"}
    assert summary(run)["best_value"] == pytest.approx(found["val"][monitor.removeprefix("val/")], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["+metrics.loss._target_=torchmetrics.classification.MulticlassF1Score"], "metrics.loss: the name is taken"),
        (["metrics.f1.average=none"], "metrics.f1 must be a single number, and its value is (10,); set its average."),
    ],
)
def test_a_metric_that_cannot_be_used_is_one_line_before_training(runs: WarmRuns, settings: list[str], text: str):
    done = runs.run(*TINY, *settings, "run_name=refused", expect=2)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {text}")
    assert "epoch" not in done.stdout.partition("batches per epoch")[2]
    shutil.rmtree(runs.logs / "train" / "refused", ignore_errors=True)


def test_a_task_with_other_outputs_predicts_and_exports_them_and_eval_refuses(runs: WarmRuns, tmp_path: Path):
    done = runs.run(*TINY, "task._target_=own_tasks.Rotation", "run_name=rotation", "augment=none")
    assert "not calibrated: the outputs of Rotation are not the classes of the data" in done.stdout
    run = runs.logs / "train" / "rotation"
    names = ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]
    assert "calibration.json" not in {file.name for file in (run / "checkpoints").iterdir()}
    assert load_model(run).class_names == tuple(names)
    Image.fromarray(shapes.render_split("test", 1)[0][0].transpose(1, 2, 0)).save(tmp_path / "x.png")
    logs = f"paths.log_dir={tmp_path}"
    done = warm_imago().run("src/predict.py", f"run={run}", f"input={tmp_path}/x.png", f"output={tmp_path}/x.csv", logs)
    assert done.returncode == 0, done.stderr
    assert any(name in (tmp_path / "x.csv").read_text() for name in names)
    done = warm_imago().run("src/export.py", f"run={run}", "parity_samples=5", logs)
    assert done.returncode == 0, done.stderr
    exported = OnnxClassifier(run / "export" / "model.onnx")
    assert (exported.class_names, exported.predicts_classes) == (tuple(names), False)
    assert eval_command(run) == ""
    for model in (run, run / "export" / "model.onnx"):
        done = warm_imago().run("src/eval.py", f"run={model}", logs)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stdout + done.stderr


def test_the_stored_settings_have_the_limit_of_overfit_batches(tmp_path: Path):
    runs = WarmRuns(tmp_path)
    quick = ("data=shapes", "data.batch_size=32", "model.hidden_features=16", "trainer.max_epochs=1")
    quick += ("trainer.limit_val_batches=2", "trainer.limit_test_batches=1")
    runs.run(*quick, "trainer.overfit_batches=2", "run_name=overfit")
    run = runs.logs / "train" / "overfit"
    stored = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    assert stored["limit_train_batches"] == stored["overfit_batches"] == summary(run)["steps"] == 2
    runs.run(f"resume={run}", "trainer.max_epochs=2")
    assert summary(run)["steps"] == 4


def test_a_run_is_not_resumed_on_other_images_of_equal_names_and_sizes(tmp_path: Path):
    rng = np.random.default_rng(0)
    for folder in ("one", "two"):
        for path in (Path(split, name) for split in ("train", "val", "test") for name in ("a/0.bmp", "b/0.bmp")):
            (tmp_path / folder / path.parent).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / folder / path)
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    runs = WarmRuns(tmp_path)
    quick = ("data=image_folder", "model.hidden_features=16", "preprocess.size=8", "augment=none")
    runs.run(*quick, f"data.root={tmp_path / 'one'}", "trainer.max_epochs=1", "run_name=images")
    run = runs.logs / "train" / "images"
    before = json.loads((run / "provenance.json").read_text())
    refused = runs.run(f"resume={run}", f"data.root={tmp_path / 'two'}", "trainer.max_epochs=2", expect=2)
    assert "was started on other data (contents of the images" in refused.text
    after = json.loads((run / "provenance.json").read_text())
    assert {name: after[name] for name in ("images", "test")} == {name: before[name] for name in ("images", "test")}
    runs.run(f"resume={run}", f"data.root={tmp_path / 'moved'}", "trainer.max_epochs=2")
    assert summary(run)["epochs"] == 2
