"""`model=pruned` fine-tunes the network of a run, which later commands use without that run."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from short_runs import SHORT, summary
from small_fit import build_data
from warm_runs import TWO, WarmRuns

from imago.errors import ConfigError, DataError
from imago.inference.load import load_classifier
from imago.runs.checkpoint import read_checkpoint, write_checkpoint
from imago.training.build import build_task
from imago.training.checks import check_settings
from imago.training.pruning import PrunedNetwork, choose_pruned_preprocess, load_pruned

PRUNED = ("data=shapes", "model=pruned")


@pytest.fixture
def settings(compose: Callable, pruned_file: Path) -> Callable[..., DictConfig]:
    """Compose settings of `model=pruned` for a checkpoint."""
    return lambda *overrides: compose(*PRUNED, f"model.run={pruned_file}", *overrides)


@pytest.fixture(scope="module")
def pruned_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an ImageTask's settings and random weights, of a network on the classes of the shapes."""
    from imago.data.shapes import CLASS_NAMES
    from imago.model.simple_cnn import SimpleCNN

    torch.manual_seed(0)
    record = {"size": 32, "resize": 32, "crop": "center", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    net = {"_target_": "imago.model.simple_cnn.SimpleCNN", "hidden_features": 16, "weights": "/gone.pth"}
    state = {f"net.{name}": value for name, value in SimpleCNN(10, 32, 16).state_dict().items()}
    hyper = {"net": net, "class_names": list(CLASS_NAMES), "preprocess": record, "metrics": {}}
    header = {"schema": 2, "torch": "", "task": None}
    file = tmp_path_factory.mktemp("pruned") / "best.ckpt"
    write_checkpoint({"imago": header, "state_dict": state, "hyper_parameters": hyper}, file)
    return file


def load(cfg: DictConfig) -> PrunedNetwork:
    pruned = load_pruned(cfg)
    assert pruned is not None
    return pruned


def test_the_task_has_the_pruned_weights_the_preprocess_of_the_run_and_plain_settings(settings: Callable):
    cfg = settings("model.freeze=features.*", "preprocess.mean=[0.5,0.5,0.5]")
    pruned, data = load(cfg), build_data(cfg)
    data.preprocess, origin = choose_pruned_preprocess(cfg, pruned, data)
    assert origin == "mean as typed, else from model.run"
    assert (data.preprocess.mean, data.preprocess.std) == ((0.5,) * 3, (0.4, 0.5, 0.6))
    task: Any = build_task(cfg, data, pruned=pruned)
    state = pruned.net.state_dict() if pruned.net else {}
    assert all(torch.equal(value, state[name]) for name, value in task.net.state_dict().items())
    assert not task.net.features[0].weight.requires_grad
    assert task.hparams["net"]["weights"] is None
    assert task.hparams["net"]["pruned_shapes"]["classifier.1.weight"] == [8, 32 * 64]
    json.dumps(task.hparams["net"])  # plain data


def test_a_whitening_layer_keeps_the_weights_of_the_run(compose: Callable, pruned_file: Path, tmp_path: Path):
    from imago.model.whitened_resnet import WhitenedResNet

    checkpoint = read_checkpoint(pruned_file)
    net = {"_target_": "imago.model.whitened_resnet.WhitenedResNet", "widths": [16, 16], "logit_scale": 0.1}
    checkpoint["hyper_parameters"] |= {"net": net}
    checkpoint["state_dict"] = {f"net.{k}": v for k, v in WhitenedResNet(10, 32, [16, 16], 0.1).state_dict().items()}
    write_checkpoint(checkpoint, tmp_path / "white.ckpt")
    cfg = compose(*PRUNED, f"model.run={tmp_path / 'white.ckpt'}")
    task: Any = build_task(cfg, build_data(cfg), pruned=(pruned := load(cfg)))
    assert pruned.net is not None
    assert torch.equal(task.net.whitening.weight, pruned.net.get_parameter("whitening.weight"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.ratio=0", r"^model\.ratio=0 must be between 0 and 1, both excluded"),
        ("model.ratio=1.0", r"^model\.ratio=1\.0 must be between 0 and 1"),
        ("+model.weights=default", r"^model\.weights=default: model=pruned takes the network from model\.run; leave"),
        ("+model.in_channels=1", r"^model\.in_channels=1: model=pruned takes the network from model\.run"),
        ("+model.width=8", r"^model\.width=8: model=pruned takes the network from model\.run; leave it out"),
        ("model.run=some/export/model_int8.onnx", r"^model\.run=.*onnx is an ONNX file, .* type the run directory"),
    ],
)
def test_settings_that_cannot_work_are_refused(compose: Callable, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        check_settings(compose(*PRUNED, "model.run=some/run", override))


def test_an_experiment_that_trains_from_random_weights_can_be_pruned(compose: Callable):
    check_settings(compose("experiment=cifar10_resnet18", *PRUNED, "model.run=some/run"))


def test_the_package_is_needed_only_to_prune(compose: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(
        ConfigError, match=r"^model=pruned needs the package torch-pruning, .* pip install -e '\.\[prun"
    ):
        check_settings(compose(*PRUNED, "model.run=some/run"))
    check_settings(compose(*PRUNED, "model.run=some/run", "resume=some/other"))


def test_other_classes_another_size_and_another_lightning_module_are_refused(settings: Callable):
    cfg = settings()
    pruned, data = load(cfg)._replace(output_names=("ant", "bee")), build_data(cfg)
    with pytest.raises(
        ConfigError, match=r"^model\.run=.* has the classes ant, bee, and the data arrow, .*; use a run"
    ):
        choose_pruned_preprocess(cfg, pruned, data)
    cfg = settings("preprocess.size=64")
    with pytest.raises(ConfigError, match=r"^preprocess\.size=64: the network of model\.run was trained for 32 px"):
        choose_pruned_preprocess(cfg, load(cfg), data)
    with pytest.raises(ConfigError, match=r"^model=pruned needs a task derived from imago\.task\.base\.ImageTask"):
        load_pruned(settings("task._target_=lightning.pytorch.LightningModule"))


def test_a_network_that_cannot_be_pruned_is_named_with_its_run(settings: Callable, pruned_file: Path):
    with pytest.raises(ConfigError, match=rf"^model\.run={pruned_file} model\.ratio=0\.001: no layer has channels to"):
        load_pruned(settings("model.ratio=0.001"))


@pytest.mark.parametrize("where", ["_target_", "pruned_shapes"])
def test_a_changed_checkpoint_of_a_pruned_network_is_refused(pruned_file: Path, tmp_path: Path, where: str):
    changed = {"_target_": "os.system", "pruned_shapes": {"classifier.4.weight": [10**6, 16]}}
    checkpoint = read_checkpoint(pruned_file)
    checkpoint["hyper_parameters"]["net"] |= {where: changed[where]}
    write_checkpoint(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(
        (ConfigError, DataError), match=r"changed\.ckpt: .*(os\.system is neither|is no tensor of Simple)"
    ):
        load_classifier(tmp_path / "changed.ckpt")


@pytest.mark.slow
@pytest.mark.xdist_group("pruning")
def test_a_run_is_pruned_fine_tuned_resumed_evaluated_and_exported_without_it(
    runs: WarmRuns, finished_run: Path, command: Callable
):
    tiny = (*SHORT, "trainer.limit_train_batches=4", "threads=1", "schedule=constant")
    source = shutil.copytree(finished_run, runs.logs / "source")
    own = ("model=pruned", f"model.run={source}", "callbacks=ema")
    screen = runs.run(*tiny, *own, "run_name=whole").text
    runs.run(*tiny, *own, "run_name=part", "trainer.max_epochs=1")
    assert "SimpleCNN, 532,202 parameters, pruned" in screen
    assert "pruned: 2,122,186 to 532,202 parameters, 7,705,600 to 2,148,864 multiply-adds" in screen
    whole, part = runs.logs / "train" / "whole", runs.logs / "train" / "part"
    before, after = summary(whole)["pruned"]["val_acc"]
    assert before == pytest.approx(summary(finished_run)["val"]["acc"])
    assert f"val accuracy {before:.2%} before pruning, {after:.2%} after it, " in screen

    shutil.rmtree(source)
    resumed = runs.run(f"resume={part}", "trainer.max_epochs=2").text
    assert "SimpleCNN, 532,202 parameters, pruned" in resumed
    states = [read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, part)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    evaluated = command("src/eval.py", f"run={part}", "accelerator=cpu")
    assert "(the run's final test: the same)" in evaluated.stdout, evaluated.stderr
    exported = command("src/export.py", f"run={part}")
    assert "every label agrees" in exported.stdout, exported.stderr

    runs.run(*tiny, "model=pruned", f"model.run={whole}", "run_name=again", *TWO)
    state = read_checkpoint(runs.logs / "train" / "again" / "checkpoints" / "best.ckpt")["state_dict"]
    assert state["net.features.0.weight"].shape == (8, 3, 3, 3)
    assert load_classifier(runs.logs / "train" / "again").class_names == load_classifier(whole).class_names
