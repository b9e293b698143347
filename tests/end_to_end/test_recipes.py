"""Averaged weights, compiling, early stopping and distillation with two processes, from the command line."""

import json
from pathlib import Path

import pytest
import torch
from short_runs import SHORT, summary, train

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("recipes")]  # their runs are made once

ONE_EPOCH = (*SHORT, "trainer.max_epochs=1", "trainer.limit_train_batches=6")


@pytest.mark.soak
def test_the_final_test_uses_the_averaged_weights_and_records_its_views(tmp_path: Path, command):
    own = ("callbacks=ema", "callbacks.ema.decay=0.8", "tta=flip")
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
    assert sorted(temperatures) == ["best.ckpt", "best.ckpt tta=flip"]  # predict and export use one view
    assert results["calibration_temperature"] == temperatures["best.ckpt tta=flip"] != temperatures["best.ckpt"]


@pytest.mark.soak
def test_a_compiled_network_is_saved_under_the_names_of_the_plain_one(tmp_path: Path):
    small = ("model.hidden_features=8", "compile=true", "trainer.precision=32-true", "trainer.limit_train_batches=2")
    done = train(tmp_path, *ONE_EPOCH, *small, "run_name=compiled")
    assert ", compiled" in done.stdout
    state = torch.load(tmp_path / "train" / "compiled" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("net.") and "_orig_mod" not in name for name in state)


@pytest.mark.soak
def test_early_stopping_ends_a_run_and_logs_the_reason(tmp_path: Path):
    still = ("optimizer.lr=1e-12", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9")
    done = train(tmp_path, *ONE_EPOCH, "run_name=stopped", "callbacks=early_stopping", *still)
    assert "stopped early: Monitored metric val/acc did not improve in the last 1 records" in done.stdout
    assert summary(tmp_path / "train" / "stopped")["epochs"] < 9


def test_max_steps_ends_a_run_with_a_validation_and_a_larger_number_extends_it(tmp_path: Path):
    small = (*SHORT, "model.hidden_features=8", "schedule=constant", "trainer.limit_train_batches=4")
    small += ("data.batch_size=32", "trainer.limit_val_batches=2", "trainer.limit_test_batches=1")
    single = {"OMP_NUM_THREADS": "1"}
    train(tmp_path, *small, "run_name=whole", **single)
    limits = ("trainer.max_epochs=null", "trainer.max_steps=6", "optimizer.eps=1e-8", "callbacks=early_stopping")
    train(tmp_path, *small, "run_name=steps", *limits, "callbacks.best_checkpoint.save_top_k=2", **single)
    whole, steps = tmp_path / "train" / "whole", tmp_path / "train" / "steps"
    assert (summary(steps)["steps"], summary(steps)["epochs"]) == (6, 1)
    assert len(list((steps / "checkpoints").glob("epoch=*-val_acc=*.ckpt"))) == 1  # none of an unfinished epoch
    assert "optimizer.eps=1e-8" in json.loads((steps / "provenance.json").read_text())["overrides"]
    done = train(tmp_path, f"resume={steps}")
    assert "this run has finished with trainer.max_steps=6; trainer.max_steps=12 extends it" in done.stdout
    train(tmp_path, f"resume={steps}", "trainer.max_steps=8", **single)
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, steps)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_any_class_is_trained_without_a_bar_and_without_checkpoints_it_warns(tmp_path: Path):
    stopper = "callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping"
    own = ("optimizer._target_=torch.optim.Rprop", stopper, "callbacks.mine.monitor=val/loss")
    off = ("trainer.enable_progress_bar=false", "callbacks.best_checkpoint=null", "callbacks.last_checkpoint=null")
    done = train(tmp_path, *ONE_EPOCH, "trainer.limit_train_batches=2", *own, *off)
    assert "does not take optimizer.weight_decay, optimizer.fused: left out." in done.stderr
    assert "no callback saves checkpoints" in done.stdout
    assert "not calibrated" not in done.stdout
    assert "epoch   1/1" in done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_two_processes_with_distillation_averaged_weights_and_muon(finished_run: Path, tmp_path: Path, strategy: str):
    own = (
        "task=distillation",
        f"task.teacher={finished_run}",
        "callbacks=ema",
        "optimizer=muon",
        "model.hidden_features=16",
    )
    train(tmp_path, *ONE_EPOCH, "run_name=both", *own, "trainer.devices=2", f"trainer.strategy={strategy}")
    run = tmp_path / "train" / "both"
    assert summary(run)["status"] == "finished"
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    averaged, trained = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert averaged.keys() == trained.keys()
    assert not all(torch.equal(averaged[name], trained[name]) for name in averaged)
