"""Distillation, averaged weights, compiling and the search for a learning rate, from the command line."""

import csv
import json
from pathlib import Path

import pytest
import torch
from short_runs import SHORT, summary, train
from warm_python import warm_hydra

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("recipes")]  # their runs are made once

ONE_EPOCH = (*SHORT, "trainer.max_epochs=1", "trainer.limit_train_batches=6")


@pytest.fixture(scope="module")
def distilled(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher that was named by a link, as `logs/latest` is."""
    logs = tmp_path_factory.mktemp("distilled")
    (logs / "latest").symlink_to(finished_run)
    done = train(logs, *ONE_EPOCH, "run_name=student", "task=distillation", f"task.teacher={logs}/latest")
    (logs / "screen.txt").write_text(done.stdout)
    return logs / "train" / "student"


def test_a_distilled_run_names_its_teacher_and_is_used_like_any_other(distilled: Path, finished_run: Path, command):
    screen = (distilled.parents[1] / "screen.txt").read_text()
    assert "temperature 4.0, 70% of the loss" in screen
    assert f"teacher: {finished_run}" in (distilled / "config.yaml").read_text()
    done = command("src/eval.py", f"run={distilled}", "accelerator=cpu")
    assert done.returncode == 0, done.stderr
    assert "(the run's final test: the same)" in done.stdout


@pytest.mark.soak
def test_a_distilled_run_goes_on_with_its_own_teacher_though_latest_is_another_run_now(distilled: Path):
    assert (distilled.parents[1] / "latest").resolve() == distilled
    train(distilled.parents[1], f"resume={distilled}", "trainer.max_epochs=2")
    assert summary(distilled)["epochs"] == 2
    other = train(distilled.parents[1], f"resume={distilled}", "trainer.max_epochs=3", "task.alpha=0.1", check=False)
    assert other.returncode == 2
    assert "task.alpha=0.1 would make it another run: it has task.alpha=0.7" in other.stderr


def test_a_teacher_of_other_classes_is_refused_in_one_line(finished_run: Path, real_data: Path, tmp_path: Path):
    photos = (
        "data=image_folder",
        f"data.root={real_data}/hymenoptera_data",
        "preprocess.size=32",
        "preprocess.resize=32",
    )
    done = train(tmp_path, *photos, "task=distillation", f"task.teacher={finished_run}", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "and the data has ants bees; take a teacher of the same classes." in done.stderr


def test_a_teacher_that_does_not_exist_is_one_line(tmp_path: Path):
    done = train(tmp_path, "task=distillation", "task.teacher=no/such run", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: task.teacher=no/such run does not exist")


@pytest.mark.soak
def test_the_final_test_has_the_averaged_weights_of_the_best_checkpoint_and_tells_its_views(tmp_path: Path, command):
    own = ("callbacks=[default,ema]", "callbacks.ema.decay=0.8", "tta=flip")
    done = train(tmp_path, *ONE_EPOCH, "run_name=averaged", *own)
    run = tmp_path / "train" / "averaged"
    assert "test accuracy, mean over several views of each image (tta=flip)" in done.stdout
    assert summary(run)["test"]["tta"] == "flip"
    evaluated = command("src/eval.py", f"run={run}", "tta=flip", "accelerator=cpu")
    assert "(the run's final test: the same)" in evaluated.stdout, evaluated.stdout + evaluated.stderr
    results = json.loads((run / "eval" / "test-tta_flip" / "metrics.json").read_text())
    assert results["tta"] == "flip"
    assert results["acc"] == pytest.approx(summary(run)["test"]["acc"])
    fitted = json.loads((run / "checkpoints" / "calibration.json").read_text())
    temperatures = {name: entry["calibration_temperature"] for name, entry in fitted.items()}
    assert sorted(temperatures) == ["best.ckpt", "best.ckpt tta=flip"]  # predict and export show one view
    assert results["calibration_temperature"] == temperatures["best.ckpt tta=flip"] != temperatures["best.ckpt"]
    without = train(tmp_path, f"resume={run}", "trainer.max_epochs=2", "callbacks.ema.decay=0.5", check=False)
    assert without.returncode == 2
    assert "callbacks.ema.decay=0.5 would make it another run: it has callbacks.ema.decay=0.8" in without.stderr


@pytest.mark.soak
def test_a_compiled_network_is_saved_under_the_names_of_the_plain_one(tmp_path: Path):
    small = ("model.hidden_features=8", "compile=true", "trainer.precision=32-true", "trainer.limit_train_batches=2")
    done = train(tmp_path, *ONE_EPOCH, *small, "run_name=compiled")
    assert ", compiled" in done.stdout
    state = torch.load(tmp_path / "train" / "compiled" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("net.") and "_orig_mod" not in name for name in state)


@pytest.mark.soak
def test_without_a_compiler_compiling_is_refused_in_one_line(tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = {"CXX": str(empty / "c++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    # Not from the process that has imported torch: that is when torch looks for a compiler.
    done = warm_hydra().run("src/train.py", *ONE_EPOCH, "compile=true", f"paths.log_dir={tmp_path}", **nothing)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: compile=true: torch cannot compile here")
    assert done.stderr.count("\n") == 1


def test_tune_suggests_a_learning_rate_and_trains_nothing(tmp_path: Path):
    done = train(tmp_path, "data=shapes", "tune=lr", "run_name=tuned", "trainer.max_epochs=3", "augment=none")
    run = tmp_path / "train" / "tuned"
    suggestion = summary(run)["tuned"]["optimizer.lr"]
    assert 1e-5 < suggestion < 1
    assert f"optimizer.lr={suggestion:.1e}" in done.stdout
    assert "tune=lr" not in done.stdout.partition("next:")[2]
    assert {"lr_curve.csv", "lr_curve.png"} <= {path.name for path in run.iterdir()}
    assert not (run / "checkpoints").exists()
    assert not {"val", "test"} & summary(run).keys()
    rows = list(csv.DictReader((run / "lr_curve.csv").open()))
    lrs = [float(row["lr"]) for row in rows]
    assert lrs[0] == pytest.approx(1e-6)
    assert lrs[20] == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["optimizer._target_=torch.optim.NAdam"], "optimizer: torch.optim.NAdam takes no 'fused'"),
        (["optimizer=sgd", "optimizer.momentum=0.0"], "optimizer: Nesterov momentum requires a momentum"),
        (["optimizer=torch", "optimizer._target_=torch.optim.Nope"], "optimizer: _target_=torch.optim.Nope: there is"),
        (["optimizer=torch", "optimizer._target_=torch.optim.adamw"], "optimizer: _target_=torch.optim.adamw is not"),
        (["schedule._target_=imago.schedule.nope.Nope"], "schedule._target_=imago.schedule.nope.Nope: there is no"),
        (["+schedule.warmth=1"], "schedule: imago.schedule.warmup_cosine.WarmupCosine takes no 'warmth'"),
    ],
)
def test_what_optimizer_and_schedule_do_not_take_is_one_line_before_data_is_read(
    tmp_path: Path, settings: list[str], text: str
):
    done = train(tmp_path, *ONE_EPOCH, *settings, check=False)
    assert "run directory" not in done.stdout  # of the start table, which tells what was read
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {text}"), done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.soak
def test_early_stopping_ends_a_run_and_says_why(tmp_path: Path):
    still = ("optimizer.lr=1e-12", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9")
    done = train(tmp_path, *ONE_EPOCH, "run_name=stopped", "callbacks=[default,early_stopping]", *still)
    assert "stopped early: Monitored metric val/acc did not improve in the last 1 records" in done.stdout
    assert summary(tmp_path / "train" / "stopped")["epochs"] < 9


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_two_processes_distil_and_average_with_muon_and_end_with_one_set_of_weights(
    finished_run: Path, tmp_path: Path, strategy: str
):
    own = ("task=distillation", f"task.teacher={finished_run}", "callbacks=[default,ema]", "optimizer=muon")
    train(tmp_path, *ONE_EPOCH, "run_name=both", *own, "trainer.devices=2", f"trainer.strategy={strategy}")
    run = tmp_path / "train" / "both"
    assert summary(run)["status"] == "finished"
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    averaged, trained = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert averaged.keys() == trained.keys()
    assert not all(torch.equal(averaged[name], trained[name]) for name in averaged)
