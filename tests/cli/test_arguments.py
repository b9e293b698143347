"""Arguments of targets that no YAML has are accepted, and keys that a typed target does not take are left out."""

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path

from imago.cli.arguments import accept_arguments, first_trial
from imago.cli.overrides import compose
from imago.paths import PROJECT_ROOT

STOPPER = "callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping"
DDP = "trainer.strategy._target_=lightning.pytorch.strategies.DDPStrategy"


@pytest.fixture(scope="module")
def train_loader() -> ConfigLoaderImpl:
    return ConfigLoaderImpl(create_config_search_path(str(PROJECT_ROOT / "configs")))


def accept(loader, *overrides: str) -> list[str]:
    """Return the new command line."""
    replaced = accept_arguments(overrides, loader, "train")
    return [new for text in overrides for new in replaced.get(text, [text])]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_steps=3", "optimizer.betas=[0.9,0.99]", "logger.tensorboard.flush_secs=30"],
        ["optimizer=sgd", "optimizer.dampening=0.1"],
        ["optimizer={eps: 1e-7}"],
        [STOPPER, "callbacks.mine.monitor=val/loss", "callbacks.mine.patience=1"],
        [DDP, "trainer.strategy.find_unused_parameters=true"],
        ["trainer.profiler._target_=lightning.pytorch.profilers.SimpleProfiler", "trainer.profiler.extended=true"],
        ["model=timm", "model.drop_path_rate=0.1"],
        ["optimizer.eps=1e-7,1e-8"],
    ],
)
def test_arguments_are_added_once(train_loader, overrides: list[str]):
    line = accept(train_loader, *overrides)
    assert line == [text if text in ("optimizer=sgd", "model=timm") else f"++{text}" for text in overrides]
    assert accept(train_loader, *line) == line
    compose(train_loader, "train", first_trial(line, train_loader))  # Hydra accepts it


@pytest.mark.parametrize("plus", ["+", "++"])
@pytest.mark.parametrize(
    "typed",
    ["optimizer.lr=1", "trainer=cpu", "experiment=quickstart", "optimizer={lr: 1}", "data.root=null", "seed=1,2"],
)
def test_a_plus_before_what_exists_changes_nothing(train_loader, typed: str, plus: str):
    assert accept(train_loader, f"{plus}{typed}") == [typed]
    added = f"{plus}optimizer.betas=[0.9,0.9]"
    assert accept(train_loader, added) == [added]


@pytest.mark.parametrize(
    "typed",
    [
        *("optimizer.lr=1", "optimizer.lrr=1", "trainer.max_step=3", "optimiser._target_=torch.optim.SGD"),
        *("callbacks.early_stopping.patience=3", "seed.x=1", "trainer.strategy.x=1", "data.augment.x=1"),
        *("data.val_fractoin=0.1", "task.optimizer.betas=[0.9,0.9]", "model.x=1"),
        *("~optimizer.lr", "hydra.job.chdir=true", "+new=1", "optimizer={betas: [0.9,0.9], lrr: 1}"),
    ],
)
def test_other_arguments_are_unchanged(train_loader, typed: str):
    assert accept(train_loader, typed) == [typed]


def test_a_typed_target_leaves_out_what_it_does_not_take(train_loader, capfd):
    typed = ["model._target_=torchvision.models.resnet18", "model.dropout=0.1"]
    line = accept(train_loader, *typed)
    assert line == [typed[0], "~model.hidden_features", typed[1]]  # weights, freeze and in_channels are our own
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["model._target_=torchvision.models.resnet18 does not take model.hidden_features: left out."]
    assert accept(train_loader, *line) == line
    assert capfd.readouterr().err == ""
    assert "hidden_features" not in compose(train_loader, "train", line).model


def test_a_subclass_keeps_what_its_bases_take(train_loader):
    line = accept(train_loader, "data._target_=imago.data.shapes.ShapesDataModule")
    assert line == ["data._target_=imago.data.shapes.ShapesDataModule", "~data.root", "~data.data_dir"]
